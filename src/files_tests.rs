//! What is taken out of lists and archives, and what is refused.

use super::*;

type Entry<'a> = (EntryType, &'a [u8], &'a [u8]);

/// Written by hand: the builder refuses what a hostile one would hold.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (kind, path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let body: &[u8] = if *kind == EntryType::Regular { content } else { b"" };
        if *kind == EntryType::Symlink {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
        }
        header.set_size(body.len() as u64);
        header.set_cksum();
        out.append(&header, body).unwrap();
    }
    out.into_inner().unwrap().finish().unwrap()
}

fn looked_through(gzip: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    inspect(gzip, 1 << 20, 4, |_, _| {}).map_err(|damaged| damaged.to_string())
}

#[test]
fn an_archive_is_used_only_whole_and_with_nothing_but_what_we_put_into_one() {
    use EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let good = archive(&[(Directory, b"d/", b""), (Regular, b"d/\xff\n", b"abcd"), (Regular, b"big", b"abcde"), (Symlink, b"l", b"/etc")]);
    let mut taken = Vec::new();
    let members = inspect(&good, 1 << 20, 4, |path, content| taken.push((path.to_vec(), content))).unwrap();
    assert_eq!(members, [&b"d"[..], b"d/\xff\n", b"big", b"l"]);
    assert_eq!(taken, [(b"d/\xff\n".to_vec(), b"abcd".to_vec())], "no larger than asked for");
    let bad: [Entry<'_>; 7] = [
        (Regular, b"../a", b"x"),
        (Regular, b"/a", b"x"),
        (Regular, b"a/../../b", b"x"),
        (Regular, b"a//b", b"x"),
        (Regular, b"l/passwd", b"x"),
        (Fifo, b"pipe", b""),
        (Link, b"hard", b""),
    ];
    for entry in bad {
        let hostile = archive(&[(Symlink, b"l", b"/etc"), entry]);
        assert!(looked_through(&hostile).unwrap_err().starts_with("it holds"), "{entry:?}");
    }
    for end in [0, 1, 20, good.len() / 2, good.len() - 1] {
        assert!(looked_through(&good[..end]).unwrap_err().starts_with("it can't be read"), "{end}");
    }
    let mut flipped = good.clone();
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    assert!(looked_through(&flipped).is_err(), "its checksum is looked at");
    let bomb = archive(&[(Regular, b"zeros", &vec![0; 2 << 20])]);
    assert!(looked_through(&bomb).is_err());
}

#[test]
fn a_list_is_read_whatever_is_in_its_names() {
    let hash = "ab".repeat(32);
    let list = format!("created 3 {hash} a b\n\0modified 12 - \"$(x)\0gone 0 - old\0deleted 0 - z\0nonsense\0");
    let (listed, gone) = changes(list.as_bytes());
    let of = |nth: usize| (readable(&listed[nth].path), listed[nth].change.as_str(), listed[nth].bytes, listed[nth].sha256.is_some());
    assert_eq!(of(0), ("\"$(x)".to_owned(), "modified", 12, false));
    assert_eq!(of(1), ("a b\n".to_owned(), "created", 3, true));
    assert_eq!((of(2), gone), (("z".to_owned(), "deleted", 0, false), vec![b"old".to_vec()]));
    assert_eq!(readable(b"caf\xe9 \xc3\xa9"), "caf\\xe9 é");
}

#[test]
fn a_message_names_what_came_with_it_and_shows_the_images() {
    let file = |path: &str, media_type: Option<&str>, content: &[u8]| Attachment {
        path: path.to_owned(),
        media_type: media_type.map(str::to_owned),
        content: content.to_vec(),
    };
    assert_eq!(message("hi", &[]), [json!({ "type": "text", "text": "hi" })]);
    let large = [&b"GIF89a"[..], &vec![0; IMAGE_MAX_BYTES]].concat();
    let parts = message(
        "hi",
        &[
            file("data/report.csv", None, b"1,2"),
            // By its bytes, not by what it calls itself.
            file("a.txt", None, b"\x89PNG\r\n\x1a\nrest"),
            file("no.png", Some("image/png"), b"<html>"),
            file("large.gif", None, &large),
            file("w", None, b"RIFF....WEBPVP8 "),
            file("j", None, b"\xff\xd8\xff\xe0"),
        ],
    );
    let kinds: Vec<_> = parts.iter().map(|part| part["source"]["media_type"].as_str().unwrap_or("text")).collect();
    assert_eq!(kinds, ["text", "text", "image/png", "image/webp", "image/jpeg"]);
    let said = parts[1]["text"].as_str().unwrap();
    assert!(said.contains("\n- data/report.csv (text/csv, 3 bytes)\n") && said.contains("\n- no.png (image/png, 6 bytes)\n"), "{said}");
    assert_eq!(parts[2]["source"]["data"], BASE64.encode(b"\x89PNG\r\n\x1a\nrest"));
}
