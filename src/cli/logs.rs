//! The log: to stderr, for people or as JSON lines.

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{self, Writer};

use super::{TerminalLike as _, paint};

/// Services say what they do, other commands only what goes wrong.
pub fn logging(wanted: &str, service: bool) {
    let json = wanted.ends_with("+json");
    let wanted = wanted.trim_end_matches("+json");
    let fallback = if service { "info,sqlx=warn,apalis=warn,apalis_core=warn" } else { "warn" };
    let filter = EnvFilter::try_new(if wanted.is_empty() { fallback } else { wanted }).unwrap_or_else(|_| EnvFilter::new(fallback));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        let fields = format::debug_fn(field).delimited(" ");
        builder.fmt_fields(fields).with_target(false).with_ansi(anstream::stderr().is_terminal_like()).init();
    }
}

/// As tracing writes fields, but harmless: ids are the caller's own texts and may have anything in them.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    let name = field.name();
    let text = paint::safe(&format!("{value:?}"));
    match name.strip_prefix("r#").unwrap_or(name) {
        "message" => writer.write_str(&text),
        // How another library's log lines say where they are from.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => write!(writer, "{}{name}={}{text}", paint::DIM, paint::OFF),
        name => write!(writer, "{name}={text}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_in_a_field_steers_the_terminal() {
        let written = Written::default();
        let to = written.clone();
        let fields = format::debug_fn(field).delimited(" ");
        let log = tracing_subscriber::fmt().fmt_fields(fields).with_ansi(false).with_writer(move || to.clone()).finish();
        let id = "t\u{1b}[31m\u{7}\u{9b}1";
        tracing::subscriber::with_default(log, || {
            let _span = tracing::info_span!("turn.attempt", turn.id = %id).entered();
            tracing::info!(turn.id = %id, n = 7, "Turn {id} runs");
        });
        let line = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(line.contains("turn.attempt{turn.id=t\u{fffd}[31m\u{fffd}\u{fffd}1}"), "{line}");
        assert!(line.contains("Turn t\u{fffd}[31m\u{fffd}\u{fffd}1 runs turn.id=t\u{fffd}[31m") && line.contains(" n=7"), "{line}");
        assert!(!line.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{line}");
    }
}
