//! What agents write, as HTML that can do nothing.
//!
//! By construction, not by cleaning up after: HTML in the text becomes text, links go to http, https or mailto and say so,
//! images become links, and no attribute of the text's own is written. The policy of the pages is the second wall.

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};

/// Longest text that is read as markdown; what is longer is shown as it is.
const MAX_BYTES: usize = 128 << 10;

/// Markdown → HTML.
pub fn render(text: &str) -> String {
    if text.len() > MAX_BYTES {
        return pre(text);
    }
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    // A link that may not be one is a mark around its text.
    let mut open = Vec::new();
    let harmless = Parser::new_ext(text, options).map(|event| match event {
        Event::Html(raw) | Event::InlineHtml(raw) => Event::Text(raw),
        Event::Start(Tag::HtmlBlock) => Event::Start(Tag::Paragraph),
        Event::End(TagEnd::HtmlBlock) => Event::End(TagEnd::Paragraph),
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            let good = is_harmless(&dest_url);
            open.push(good);
            if good { link(&dest_url) } else { Event::Html("<u class=\"nolink\">".into()) }
        }
        Event::End(TagEnd::Link | TagEnd::Image) => Event::Html(if open.pop() == Some(true) { "</a>" } else { "</u>" }.into()),
        // Its alignments would be styles.
        Event::Start(Tag::Table(columns)) => Event::Start(Tag::Table(vec![pulldown_cmark::Alignment::None; columns.len()])),
        // Its class would be the text's.
        Event::Start(Tag::CodeBlock(_)) => Event::Start(Tag::CodeBlock(pulldown_cmark::CodeBlockKind::Indented)),
        Event::Start(Tag::Heading { level, .. }) => Event::Start(Tag::Heading { level, id: None, classes: Vec::new(), attrs: Vec::new() }),
        // No form of ours.
        Event::TaskListMarker(done) => Event::Text(if done { "☑ " } else { "☐ " }.into()),
        other => other,
    });
    let mut out = String::with_capacity(text.len() * 3 / 2);
    html::push_html(&mut out, harmless);
    out
}

/// A text as it is, letter by letter: of a line break at its start a parser would take the first.
pub fn pre(text: &str) -> String {
    format!("<pre>\n{}</pre>", escape(text))
}

fn link(to: &str) -> Event<'static> {
    Event::Html(CowStr::from(format!("<a href=\"{}\" rel=\"noopener noreferrer nofollow\" target=\"_blank\">", escape(to))))
}

/// Browsers read a scheme past blanks and line breaks in it, so there may be none of these.
fn is_harmless(to: &str) -> bool {
    let lower = to.to_ascii_lowercase();
    ["http://", "https://", "mailto:"].iter().any(|scheme| lower.starts_with(scheme)) && !to.chars().any(char::is_control)
}

/// Text, harmless in HTML and in its attributes, and the same when it has been read.
pub fn escape(text: &str) -> String {
    // A parser makes one line end of all kinds.
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
        .replace('\r', "&#13;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags of ours, with no attribute but these.
    fn check(html: &str, source: &str) {
        let mut rest = html;
        while let Some(at) = rest.find('<') {
            rest = &rest[at + 1..];
            let end = rest.find('>').unwrap_or_else(|| panic!("an open tag: {html} of {source}"));
            let tag = &rest[..end];
            let name: String = tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
            let known = [
                "p",
                "a",
                "u",
                "em",
                "strong",
                "del",
                "code",
                "pre",
                "ul",
                "ol",
                "li",
                "h1",
                "h2",
                "h3",
                "h4",
                "h5",
                "h6",
                "hr",
                "br",
                "table",
                "thead",
                "tbody",
                "tr",
                "th",
                "td",
                "blockquote",
            ];
            assert!(known.contains(&name.as_str()), "<{tag}> of {source}");
            let attributes = tag.trim_start_matches('/')[name.len()..].trim_end_matches('/').trim();
            let good = attributes.is_empty()
                || attributes == "class=\"nolink\""
                || (name == "ol" && attributes.starts_with("start=\""))
                || (name == "a"
                    && ["href=\"http://", "href=\"https://", "href=\"mailto:"]
                        .iter()
                        .any(|start| attributes.to_ascii_lowercase().starts_with(start)));
            assert!(good, "<{tag}> of {source}");
        }
    }

    #[test]
    fn whatever_is_written_nothing_of_it_is_html() {
        let hostile = [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "a <b onclick=x>b</b> <svg/onload=alert(1)>",
            "[x](javascript:alert(1))",
            "[x](JaVaScRiPt:alert(1))",
            "[x](java\nscript:alert(1))",
            "[x](&#106;avascript:alert(1))",
            "[x](data:text/html;base64,PHNjcmlwdD4=)",
            "[x](vbscript:x) [y](file:///etc/passwd) [z](//evil.example)",
            "![x](javascript:alert(1)) ![y](https://evil.example/pixel.png \"t\" )",
            "[x](https://good.example/\"onmouseover=alert(1))",
            "<https://good.example/\"><script>alert(1)</script>",
            "[a]: javascript:alert(1)\n[a]",
            "```html\" onload=\"x\n<script>\n```",
            "| a |\n|:-:|\n| <script>x</script> |",
            "# h {#id .class onclick=x}",
            "- [x] task <input>",
            "<!-- --><!--><script>x</script>",
            "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
            "<a href=\"javascript:x\">x</a>\n\n<div>\n*md*\n</div>",
            "&lt;script&gt; &#60;script&#62;",
            "[![x](javascript:1)](javascript:2)",
        ];
        for source in hostile {
            check(&render(source), source);
        }
    }

    #[test]
    fn what_is_markdown_is_shown_as_such() {
        assert_eq!(
            render("**a** `b` [c](https://d.example/?x=1&y=2)"),
            "<p><strong>a</strong> <code>b</code> <a href=\"https://d.example/?x=1&amp;y=2\" rel=\"noopener noreferrer nofollow\" target=\"_blank\">c</a></p>\n"
        );
        assert_eq!(render("<b>x</b>"), "<p>&lt;b&gt;x&lt;/b&gt;</p>\n");
        assert!(render(&"x".repeat(MAX_BYTES + 1)).starts_with("<pre>"));
    }
}
