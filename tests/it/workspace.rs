//! What the supervisor does about files: what a turn has changed, whatever it is called; what a new sandbox gets; and
//! that nothing outside the workspace is ever touched.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use turnmill::files::{Attachment, Parcel, changes, inspect, readable};

use crate::supervisor::Box;

const PREPARE: &str = "mkdir -p dir; echo one >kept; echo two >changed; echo x >dir/old; echo y >doomed";

/// A sandbox whose files matter.
struct Place {
    inner: Box,
    settings: Vec<(&'static str, String)>,
    epoch: u64,
}

impl Place {
    fn new(settings: &[(&'static str, &str)]) -> Self {
        let mut all: BTreeMap<&str, &str> = BTreeMap::from([
            ("TURNMILL_FILES_POLICY", "auto"),
            ("TURNMILL_FILES_MAX", "1000000"),
            ("TURNMILL_FILES_EACH", "1000"),
            ("TURNMILL_FILES_EXCLUDE", ".claude\n.cache\nnode_modules\n/out/tmp"),
            ("TURNMILL_PREPARE", PREPARE),
        ]);
        all.extend(settings.iter().copied());
        Self { inner: Box::new(), settings: all.into_iter().map(|(name, value)| (name, value.to_owned())).collect(), epoch: 1 }
    }

    fn home(&self) -> PathBuf {
        self.inner.root.path().join("home/user")
    }

    /// Runs one attempt to its end; what its supervisor says then.
    fn run(&mut self, turn: &str, attempt: u32, brought: &[&str], script: &str) -> Value {
        self.run_with(turn, attempt, brought, script, |_| {})
    }

    /// The same; `meanwhile` is done when the script may have begun.
    fn run_with(&mut self, turn: &str, attempt: u32, brought: &[&str], script: &str, meanwhile: impl FnOnce(&Self)) -> Value {
        self.epoch += 1;
        let args =
            [&["--input", "/input.jsonl", "--journal-max", "1000000", "--cwd", "/home/user"], brought, &["--", "bash", "-c", script]]
                .concat();
        let started = self.inner.command_of(turn, attempt, self.epoch, "start", &args).envs(self.settings.clone()).output().unwrap();
        assert!(started.status.success(), "{started:?}");
        meanwhile(self);
        let since = Instant::now();
        loop {
            let said = self.inner.command_of(turn, attempt, self.epoch, "probe", &[]).output().unwrap();
            let said: Value = serde_json::from_slice(&said.stdout).unwrap();
            if said["state"] == "exited" {
                return said;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "{said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for(&self, path: &str) {
        let since = Instant::now();
        while !self.home().join(path).exists() {
            assert!(since.elapsed() < Duration::from_secs(30), "{path}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn file(&self, turn: &str, attempt: u32, name: &str) -> PathBuf {
        self.inner.state().join(format!("turn-{turn}/attempt-{attempt}/{name}"))
    }

    /// The turn's changes as `change path`, and what is gone since `prepare`.
    fn changes(&self, turn: &str, attempt: u32) -> (Vec<String>, Vec<String>) {
        let list = fs::read(self.file(turn, attempt, "changes")).unwrap_or_default();
        let (listed, gone) = changes(&list);
        for file in &listed {
            let path = self.home().join(OsStr::from_bytes(&file.path));
            let content = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file).map(|_| fs::read(&path).unwrap());
            let hash = content.as_ref().map(|content| <sha2::Sha256 as sha2::Digest>::digest(content).to_vec());
            assert_eq!(file.sha256, hash, "{}", path.display());
        }
        let mut gone: Vec<_> = gone.iter().map(|path| readable(path)).collect();
        gone.sort();
        (listed.iter().map(|file| format!("{} {}", file.change.as_str(), readable(&file.path))).collect(), gone)
    }

    fn archive(&self, turn: &str, attempt: u32) -> (Vec<u8>, Vec<Vec<u8>>) {
        let archive = fs::read(self.file(turn, attempt, "archive")).unwrap();
        let mut members = inspect(&archive, 1 << 30, 0, |_, _| {}).unwrap();
        members.sort();
        (archive, members)
    }

    /// Uploads a parcel as a worker does.
    fn upload(&self, name: &str, parcel: &Parcel) -> String {
        let path = self.inner.root.path().join(name);
        if let Some(archive) = &parcel.archive {
            fs::write(&path, archive).unwrap();
        }
        fs::write(path.with_extension("plan"), &parcel.plan).unwrap();
        format!("/{name}")
    }

    fn attach(&self, files: &[(&str, &str)]) -> String {
        let file =
            |(path, text): &(&str, &str)| Attachment { path: (*path).to_owned(), media_type: None, content: text.as_bytes().to_vec() };
        self.upload("attached", &Parcel::of_attachments(&files.iter().map(file).collect::<Vec<_>>()).unwrap())
    }
}

/// Everything below a directory, with what it is.
fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, at: &Path, all: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(at).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let what = if kind.is_symlink() {
                format!("link {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                walk(dir, &path, all);
                "directory".to_owned()
            } else {
                format!("{:o} {}", entry.metadata().unwrap().mode() & 0o777, String::from_utf8_lossy(&fs::read(&path).unwrap()))
            };
            all.insert(path.strip_prefix(dir).unwrap().to_owned(), what);
        }
    }
    let mut all = BTreeMap::new();
    walk(dir, dir, &mut all);
    all
}

/// Names that break whoever is careless.
const HOSTILE: &str = r#"
printf a >$'new\nline'; printf b >'"quoted" '"'it'"; printf c >'$(touch pwned)`touch pwned`'; printf d >-rf; printf e >@; printf f >'*'
printf g >$'caf\xe9'; printf h >'a] b['; printf i >--checkpoint-action=exec=sh; printf j >' lead'; printf k >'back\slash'; printf l >'created 1 - x'
mkdir -p $'dir\n2/sub'; printf m >$'dir\n2/sub/deep'; ln -s /etc/passwd link"#;

#[test]
fn what_a_turn_has_changed_is_listed_whatever_it_is_called() {
    let mut place = Place::new(&[]);
    let said = place.run("t", 1, &[], HOSTILE);
    let (listed, gone) = place.changes("t", 1);
    let names = [
        " lead",
        "\"quoted\" 'it'",
        "$(touch pwned)`touch pwned`",
        "*",
        "--checkpoint-action=exec=sh",
        "-rf",
        "@",
        "a] b[",
        "back\\slash",
        "caf\\xe9",
        "created 1 - x",
        "dir\n2/sub/deep",
        "link",
        "new\nline",
    ];
    assert_eq!(listed, names.map(|name| format!("created {name}")));
    assert_eq!((gone.len(), &said["exit"]["files"]["unlisted"]), (0, &Value::Null));
    let (_, members) = place.archive("t", 1);
    assert_eq!(members.len(), names.len() + 2, "and two directories: {members:?}");
    assert!(!place.home().join("pwned").exists() && !place.inner.state().join("pwned").exists());
    if place.inner.uid.is_some() {
        for name in ["changes", "archive"] {
            assert_eq!(fs::metadata(place.file("t", 1, name)).unwrap().uid(), 0, "the agent can't change {name}");
        }
    }
}

#[test]
fn changes_count_from_the_start_of_the_turn_and_a_snapshot_from_the_project() {
    let mut place = Place::new(&[]);
    // With the old size and the old time, as some tools leave them.
    let script = "printf 'owt\\n' >changed; touch -r kept changed; rm doomed; mkdir -p node_modules .cache out/tmp .git/objects; \
                  touch node_modules/a .cache/b out/tmp/c .git/objects/d out/e; exit 3";
    place.run("t", 1, &[], script);
    let first = vec!["modified changed".to_owned(), "deleted doomed".to_owned(), "created out/e".to_owned()];
    assert_eq!(place.changes("t", 1), (first.clone(), vec!["doomed".to_owned()]));
    // Another attempt of the same turn.
    let said = place.run("t", 2, &[], "echo more >dir/new; touch doomed; rm out/e");
    let second = vec!["modified changed".to_owned(), "created dir/new".to_owned(), "modified doomed".to_owned()];
    assert_eq!((place.changes("t", 2).0, &said["exit"]["files"]["changed"]), (second, &json!(7)));
    // The next turn, in the same sandbox; it changes nothing of before.
    let said = place.run("u", 1, &[], "rm dir/old");
    assert_eq!(place.changes("u", 1), (vec!["deleted dir/old".to_owned()], vec!["dir/old".to_owned()]));
    assert_eq!((&said["exit"]["files"]["archive"], &said["fresh"]), (&json!("all"), &json!(false)));
    let names: Vec<_> = place.archive("u", 1).1.iter().map(|path| readable(path)).collect();
    assert_eq!(names, [".git", ".git/objects", ".git/objects/d", "changed", "dir/new", "doomed", "out"]);
}

#[test]
fn a_new_sandbox_gets_the_files_as_they_were_and_what_was_deleted_stays_deleted() {
    let mut place = Place::new(&[]);
    let script = "chmod 700 kept; rm -r dir; rm doomed; mkdir -p empty ro; echo z >ro/z; chmod 555 ro; ln -s ../.. up; rm changed; mkdir changed; echo in >changed/in";
    place.run("t", 1, &[], &format!("{HOSTILE}\n{script}"));
    let (before, gone) = (tree(&place.home()), place.changes("t", 1).1);
    assert_eq!(gone, ["dir", "dir/old", "doomed"]);
    let (archive, members) = place.archive("t", 1);
    let gone: Vec<u8> = gone.iter().flat_map(|path| path.bytes().chain([0])).collect();
    let parcel = Parcel::of_state(Some(archive.into()), &members, &gone);

    let mut next = Place::new(&[]);
    let brought = next.upload("workspace", &parcel);
    let said = next.run("u", 1, &["--workspace", &brought], "touch marker; rm kept");
    assert_eq!((&said["exit"]["status"], &said["exit"]["reason"]), (&json!(0), &Value::Null), "{said}");
    assert_eq!(next.changes("u", 1).0, ["deleted kept", "created marker"], "the turn's own changes only");
    if let Some(uid) = next.inner.uid {
        assert_eq!(fs::metadata(next.home().join("changed/in")).unwrap().uid(), uid);
    }
    // Once: what an attempt has changed is not written over by the next.
    next.run("u", 2, &["--workspace", &brought], "true");
    let mut after = tree(&next.home());
    assert!(after.remove(Path::new("marker")).is_some() && !after.contains_key(Path::new("kept")));
    after.insert("kept".into(), before[Path::new("kept")].clone());
    assert_eq!(after, before);
    // And what it would leave to a third one is all of it, restored files too.
    let names = next.archive("u", 2).1;
    assert!(members.iter().filter(|name| *name != b"kept").all(|name| names.contains(name)), "{names:?}");
}

/// A way out of the workspace, and what is there.
fn with_a_way_out(prepare: &str) -> (Place, PathBuf) {
    let place = Place::new(&[("TURNMILL_PREPARE", prepare)]);
    let out = place.inner.root.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(out.join("victim"), "safe").unwrap();
    fs::set_permissions(out.join("victim"), fs::Permissions::from_mode(0o666)).unwrap();
    symlink(&out, place.home().join("way")).unwrap();
    (place, out)
}

#[test]
fn nothing_outside_the_workspace_is_touched_by_what_is_restored() {
    let members = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect::<Vec<_>>();
    let pack = |script: &str| {
        let dir = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("bash").args(["-c", script]).current_dir(&dir).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        bytes::Bytes::from(made.stdout)
    };
    let plain = pack("mkdir way; echo bad >way/victim; echo good >fine; tar -cz fine way/victim");
    let cases = [
        // A link that the project has brought leads out: refused before anything is written.
        (Parcel::of_state(Some(plain.clone()), &members(&["fine", "way/victim"]), b""), "way/victim leads out"),
        (Parcel::of_state(None, &[], b"kept\0way/victim\0"), "way/victim leads out"),
        (Parcel::of_state(None, &[], b"../../out/victim\0"), "out/victim leads out"),
        // The plan hides what the archive does: tar itself takes nothing out.
        (
            Parcel::of_state(Some(pack("mkdir a; echo bad >victim; cd a; tar -czP ../victim --transform='s,^../,../../out/,'")), &[], b""),
            "..",
        ),
        (Parcel::of_state(Some(pack("head -c 3000 /dev/urandom")), &[], b""), "gzip"),
    ];
    for (parcel, words) in cases {
        let (mut place, out) = with_a_way_out(PREPARE);
        let brought = place.upload("workspace", &parcel);
        let said = place.run("t", 1, &["--workspace", &brought], "echo ran");
        assert_eq!((&said["exit"]["reason"], &said["exit"]["ran"]), (&json!("workspace_failed"), &json!(false)), "{words}: {said}");
        assert!(said["stderr_tail"].as_str().unwrap().contains(words), "{words}: {said}");
        assert_eq!(tree(&out), BTreeMap::from([("victim".into(), "666 safe".to_owned())]), "{words}");
        assert!(!place.home().join("fine").exists() && place.home().join("kept").exists(), "{words}");
    }
    // A link in the place of the file itself, or of a directory that is one in the archive, is replaced.
    let (mut place, out) = with_a_way_out("ln -s \"$HOME/way/victim\" fine");
    let whole = pack("mkdir way; echo mine >way/own; echo good >fine; tar -cz fine way");
    let brought = place.upload("workspace", &Parcel::of_state(Some(whole), &members(&["fine"]), b""));
    let said = place.run("t", 1, &["--workspace", &brought], "true");
    assert_eq!(said["exit"]["status"], 0, "{said}");
    assert_eq!(tree(&out), BTreeMap::from([("victim".into(), "666 safe".to_owned())]));
    assert_eq!(fs::read_to_string(place.home().join("fine")).unwrap(), "good\n");
}

/// The project's link, in whose place the agent has put a directory.
#[test]
fn a_directory_that_the_agent_made_of_a_link_that_leads_out_is_restored_and_the_link_s_end_is_not_touched() {
    let prepare = "ln -s \"$HOME/way\" data; mkdir inside; ln -s inside in; echo p >data-x";
    let (mut place, _) = with_a_way_out(prepare);
    place.run("t", 1, &[], "rm data in; mkdir -p data/sub in; echo one >data/victim; echo two >'data/sub/a] b'; echo three >in/x");
    let (archive, members) = place.archive("t", 1);
    assert_eq!(place.changes("t", 1).1, <[String; 0]>::default(), "nothing is gone: {members:?}");
    let parcel = Parcel::of_state(Some(archive.into()), &members, b"");
    let (mut next, out) = with_a_way_out(prepare);
    let brought = next.upload("workspace", &parcel);
    let said = next.run("u", 1, &["--workspace", &brought], "cat data/victim data/sub/* in/x data-x");
    assert_eq!((&said["exit"]["status"], &said["exit"]["reason"]), (&json!(0), &Value::Null), "{said}");
    assert_eq!(fs::read_to_string(next.file("u", 1, "journal.jsonl")).unwrap(), "one\ntwo\nthree\np\n");
    assert_eq!(tree(&out), BTreeMap::from([("victim".into(), "666 safe".to_owned())]));
    assert!(fs::read_dir(next.home().join("inside")).unwrap().next().is_none());
    // Not by a path that goes through the link and back, nor below another link that the plan does not bring.
    for plan in [
        "+data\0+data/victim\0+data/../way/victim\0",
        "+data\0+data/..\0+data/../x\0",
        "+way/sub\0+way/sub/x\0",
        "-data/victim\0+data\0+data/x\0",
    ] {
        let (mut next, out) = with_a_way_out(prepare);
        symlink("victim", out.join("sub")).unwrap();
        let before = tree(&out);
        let brought = next.upload("workspace", &Parcel { archive: parcel.archive.clone(), plan: plan.into() });
        let said = next.run("u", 1, &["--workspace", &brought], "true");
        let refused = plan != "+data\0+data/..\0+data/../x\0";
        assert!(!refused || said["exit"]["reason"] == "workspace_failed", "{plan}: {said}");
        assert!(!refused || fs::symlink_metadata(next.home().join("data")).unwrap().is_symlink(), "refused before anything is touched");
        assert_eq!(tree(&out), before, "{plan}");
    }
}

const TALK: [&str; 4] = ["--transcript", "conversation*", "--transcript-max", "50000"];

/// What can't be written whole, one file after the other: each lies where nothing can be.
#[test]
fn no_file_that_was_not_written_whole_is_taken_for_whole() {
    let script = "echo talk >conversation; echo x >made; rm doomed; touch .claude/ready; until [ -e .claude/go ]; do sleep 0.02; done";
    let null = || Value::Null;
    let whole = || (null(), null(), json!("all"), true, 5);
    for (file, expected) in [
        ("", whole()),
        ("now.new", (json!("failed"), json!("failed"), null(), true, 5)),
        ("changes", (json!("failed"), json!("failed"), null(), true, 5)),
        ("archive", (null(), json!("failed"), json!("turn"), true, 5)),
        ("transcript", (null(), null(), json!("all"), false, 0)),
    ] {
        let mut place = Place::new(&[("TURNMILL_PREPARE", &format!("{PREPARE}; mkdir .claude"))]);
        let said = place.run_with("t", 1, &TALK, script, |place| {
            place.wait_for(".claude/ready");
            if !file.is_empty() {
                symlink("/dev/full", place.file("t", 1, file)).unwrap();
            }
            fs::write(place.home().join(".claude/go"), "").unwrap();
        });
        let (exit, files) = (&said["exit"], &said["exit"]["files"]);
        let found = (
            files["unlisted"].clone(),
            files["unsaved"].clone(),
            files["archive"].clone(),
            exit["transcript_kept"].as_bool().unwrap(),
            exit["transcript_bytes"].as_u64().unwrap(),
        );
        assert_eq!(found, expected, "{file}: {exit}");
        let gone = if matches!(file, "now.new" | "changes") { vec![] } else { vec!["doomed".to_owned()] };
        assert_eq!((place.changes("t", 1).1, files["list_bytes"] == 0), (gone.clone(), gone.is_empty()), "{file}");
    }
}

/// There is none; there is one that is too large; there is something that can't be read.
#[test]
fn a_conversation_that_cannot_be_copied_is_told_from_none() {
    for (script, kept, bytes) in [
        ("true", true, json!(0)),
        (": >conversation", true, json!(0)),
        ("head -c 60000 /dev/zero >conversation", true, json!(50_001)),
        ("mkdir conversation", false, json!(0)),
        ("echo x >conversation; chmod 0 conversation", false, json!(0)),
    ] {
        let mut place = Place::new(&[]);
        if place.inner.uid.is_none() && script.contains("chmod") {
            continue;
        }
        let said = place.run("t", 1, &TALK, script);
        assert_eq!((&said["exit"]["transcript_kept"], &said["exit"]["transcript_bytes"]), (&json!(kept), &bytes), "{script}: {said}");
    }
}

/// A small file system of its own, where we may make one.
struct Small(PathBuf);

impl Small {
    fn at(path: PathBuf, options: &str) -> Option<Self> {
        let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).output();
        match mount {
            Ok(done) if done.status.success() => Some(Self(path)),
            refused => {
                eprintln!("skipped: no small file system can be mounted here: {refused:?}");
                None
            }
        }
    }

    /// Leaves room for so many bytes.
    fn fill(&self, room: u64) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let size = filler.metadata().unwrap().len();
        filler.set_len(size / 4096 * 4096 - room).unwrap();
    }

    fn empty(&self) {
        drop(fs::remove_file(self.0.join("filler")));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).output());
    }
}

/// Whatever room there is: what is said to be there is there, whole, and what is not is said.
#[test]
fn a_full_disk_costs_what_has_no_room_and_that_is_said() {
    let mut place = Place::new(&[("TURNMILL_PREPARE", &format!("{PREPARE}; mkdir .claude; seq -f before-%03g 300 | xargs touch"))]);
    let Some(small) = Small::at(place.inner.state(), "size=3m") else { return };
    let script = "head -c 20000 /dev/zero >conversation; seq -f made-%03g 300 | xargs touch; head -c 9000 /dev/urandom >noise; rm -f doomed .claude/ready; \
                  touch .claude/ready; until [ -e .claude/go ]; do sleep 0.02; done; rm .claude/*";
    let (mut copies, mut lists, mut archives) = ([0; 2], [0; 2], [0; 2]);
    for pages in [0, 1, 3, 6, 10, 14, 18, 22, 26, 40, 100] {
        let turn = format!("t{pages}");
        let said = place.run_with(&turn, 1, &TALK, script, |place| {
            place.wait_for(".claude/ready");
            small.fill(pages * 4096);
            fs::write(place.home().join(".claude/go"), "").unwrap();
        });
        let (exit, files) = (&said["exit"], &said["exit"]["files"]);
        let kept = exit["transcript_kept"].as_bool().unwrap();
        assert_eq!(exit["transcript_bytes"], if kept { 20_000 } else { 0 }, "{pages}: {exit}");
        let (list, gone) = place.changes(&turn, 1);
        let listed = files["unlisted"].is_null();
        assert!(listed || (files["unlisted"] == "failed" && files["unsaved"] == "failed" && list.is_empty()), "{pages}: {exit}");
        assert_eq!(gone.len(), usize::from(listed), "{pages}: {gone:?}");
        // The first of them makes what all find; it must be the turn's own list that is whole.
        let all = pages > 0 || list.len() == 303;
        assert!(!listed || all, "{pages}: {}", list.len());
        let saved = files["unsaved"].is_null();
        assert!(!saved || (files["archive"] == "all" && place.archive(&turn, 1).1.len() == 302), "{pages}: {exit}");
        assert!(saved || files["unsaved"] == "failed", "{pages}: {exit}");
        copies[usize::from(kept)] += 1;
        lists[usize::from(listed)] += 1;
        archives[usize::from(saved)] += 1;
        small.empty();
    }
    assert!([copies, lists, archives].iter().flatten().all(|&times| times > 0), "{copies:?} {lists:?} {archives:?}");
}

#[test]
fn half_a_conversation_is_not_gone_on_with() {
    let mut place = Place::new(&[("TURNMILL_PREPARE", "true"), ("TURNMILL_FILES_POLICY", "off")]);
    let uid = place.inner.uid.unwrap_or(0);
    let Some(small) = Small::at(place.home(), &format!("size=1m,uid={uid},gid={uid},mode=755")) else { return };
    let saved = place.inner.root.path().join("saved");
    fs::write(&saved, [b'x'; 9000]).unwrap();
    for (room, left) in [(4096, ""), (16384, "9000\n")] {
        small.fill(room);
        let restore = [&TALK[..], &["--restore", "/saved", "--restore-as", "conversation*"]].concat();
        place.run(&format!("t{room}"), 1, &restore, "stat -c %s conversation*; rm -f conversation*");
        assert_eq!(fs::read_to_string(place.file(&format!("t{room}"), 1, "journal.jsonl")).unwrap(), left, "{room}");
    }
}

#[test]
fn what_comes_with_a_message_is_there_before_the_agent_and_leads_nowhere_else() {
    let mut place = Place::new(&[("TURNMILL_PREPARE", "mkdir -p real; ln -s real inside; echo old >there")]);
    let brought = place.attach(&[("inside/a b.csv", "1,2"), ("new/dir/-x", "y"), ("there", "new")]);
    let said = place.run("t", 1, &["--attached", &brought], "cat 'real/a b.csv' new/dir/-x there; echo changed >there; rm new/dir/-x");
    assert_eq!(fs::read_to_string(place.file("t", 1, "journal.jsonl")).unwrap(), "1,2ynew", "{said}");
    assert_eq!(place.changes("t", 1).0, ["deleted new/dir/-x", "modified there"], "what came with it is no work of the turn");
    let attached = |place: &Place| place.attach(&[("there", "new")]);
    let brought = attached(&place);
    place.run("t", 2, &["--attached", &brought], "cat there");
    assert_eq!(fs::read_to_string(place.file("t", 2, "journal.jsonl")).unwrap(), "changed\n", "once a turn");
    place.run("u", 1, &["--attached", &brought], "cat there");
    assert_eq!(fs::read_to_string(place.file("u", 1, "journal.jsonl")).unwrap(), "new");

    let refused = [
        (PREPARE, "way/victim", "way/victim leads out"),
        (PREPARE, "way/new/file", "way/new/file leads out"),
        // What would destroy what is there.
        (PREPARE, "dir", "dir"),
        (PREPARE, "kept/file", "kept"),
        ("ln -s loop loop", "loop/file", "loop"),
    ];
    for (prepare, path, words) in refused {
        let (mut place, out) = with_a_way_out(prepare);
        let brought = place.attach(&[("first", "x"), (path, "bad")]);
        let said = place.run("t", 1, &["--attached", &brought], "echo ran");
        assert_eq!((&said["exit"]["reason"], &said["exit"]["ran"]), (&json!("attachment_refused"), &json!(false)), "{path}: {said}");
        assert!(said["stderr_tail"].as_str().unwrap().contains(words), "{path}: {said}");
        assert_eq!(tree(&out), BTreeMap::from([("victim".into(), "666 safe".to_owned())]), "{path}");
        assert!(prepare != PREPARE || place.home().join("dir/old").exists());
    }
    let (mut place, out) = with_a_way_out("ln -s \"$HOME/way/victim\" file");
    let brought = place.attach(&[("file", "mine")]);
    place.run("t", 1, &["--attached", &brought], "true");
    assert!(!fs::symlink_metadata(place.home().join("file")).unwrap().is_symlink(), "the link is replaced, not followed");
    assert_eq!(tree(&out), BTreeMap::from([("victim".into(), "666 safe".to_owned())]));
}

#[test]
fn what_is_too_large_or_too_much_costs_the_snapshot_and_not_the_turn() {
    let noise = "head -c 20000 /dev/urandom >large; echo small >small";
    let many = "seq 1 10001 | xargs touch";
    let sparse = "truncate -s 1T sparse; echo small >small";
    for (script, max, unsaved, unlisted, archive) in [
        (noise, "10000", json!("too_large"), Value::Null, json!("turn")),
        (sparse, "10000", json!("too_large"), Value::Null, json!("turn")),
        (many, "1000000", json!("too_many"), json!("truncated"), Value::Null),
        ("echo x >unreadable; chmod 0 unreadable; echo y >readable", "1000000", json!("incomplete"), Value::Null, json!("all")),
    ] {
        let mut place = Place::new(&[("TURNMILL_FILES_MAX", max), ("TURNMILL_FILES_EACH", if script == many { "0" } else { "1000" })]);
        if place.inner.uid.is_none() && archive == json!("all") {
            continue;
        }
        let said = place.run("t", 1, &[], script);
        let files = &said["exit"]["files"];
        assert_eq!((&said["exit"]["status"], &files["unsaved"], &files["archive"]), (&json!(0), &unsaved, &archive), "{script}: {files}");
        assert_eq!(files["unlisted"], unlisted, "{files}");
        if archive == json!("turn") {
            assert_eq!(place.archive("t", 1).1, [b"small"], "for readers");
        }
    }
}

#[test]
fn a_template_without_the_tools_runs_its_turns_and_says_so() {
    let bin = turnmill::local::postgres::passable_tempdir("turnmill-test-").unwrap();
    for program in ["/usr/bin", "/bin"].iter().flat_map(|dir| fs::read_dir(dir).unwrap().flatten()) {
        drop(symlink(program.path(), bin.path().join(program.file_name())));
    }
    for (missing, unsaved, listed) in [("find", "unfit", false), ("tar", "unfit", true)] {
        fs::remove_file(bin.path().join(missing)).unwrap();
        let mut place = Place::new(&[]);
        place.settings.push(("PATH", bin.path().display().to_string()));
        let said = place.run("t", 1, &[], "echo x >made");
        let files = &said["exit"]["files"];
        assert_eq!((&said["exit"]["status"], &files["unsaved"]), (&json!(0), &json!(unsaved)), "{missing}: {said}");
        assert_eq!((files["unlisted"] == Value::Null, &files["archive"]), (listed, &Value::Null), "{missing}: {files}");
        let brought = place.attach(&[("file", "x")]);
        let said = place.run("u", 1, &["--attached", &brought], "true");
        if missing == "tar" {
            assert_eq!(said["exit"]["reason"], "attachment_refused", "{said}");
            assert!(said["stderr_tail"].as_str().unwrap().contains("lacks GNU tar"), "{said}");
        }
        symlink(format!("/usr/bin/{missing}"), bin.path().join(missing)).unwrap();
    }
}

#[test]
fn a_finish_hook_says_whether_it_has_carried_the_files() {
    for (policy, finish, carried, archive) in [
        ("auto", "exit 10", false, json!("all")),
        ("auto", "", false, json!("all")),
        ("auto", "true", true, json!("turn")),
        ("snapshot", "rm -f made", true, json!("all")),
        ("hooks", "exit 10", false, json!("turn")),
        ("none", "", false, json!("turn")),
    ] {
        let mut place = Place::new(&[("TURNMILL_FILES_POLICY", policy), ("TURNMILL_FINISH", finish)]);
        let said = place.run("t", 1, &[], "echo x >made; mkdir directory");
        let files = &said["exit"]["files"];
        assert_eq!(
            (&said["exit"]["finish"], &files["carried"], &files["archive"]),
            (&Value::Null, &json!(carried), &archive),
            "{policy} {finish}"
        );
        assert!(place.archive("t", 1).1.contains(&b"made".to_vec()), "{policy} {finish}");
    }
}

/// The manifest is the agent's to spoil: whatever stands in its place is read as text, never run.
#[test]
fn a_list_that_a_hostile_process_has_made_up_runs_nothing() {
    let mut place = Place::new(&[]);
    let pwned = place.inner.root.path().join("pwned");
    let bin = place.inner.root.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let mut find = fs::File::create(bin.join("find")).unwrap();
    let evil = format!("a[$(>{})]", pwned.display());
    write!(find, "#!/bin/bash\n[ \"$1\" != / ] || exec /usr/bin/find \"$@\"\nprintf 'f {evil} 1 1 644 x\\0f 1 1 1 644 {evil}\\0f 08 1 1 644 y\\0nonsense\\0f 1'").unwrap();
    drop(find);
    fs::set_permissions(bin.join("find"), fs::Permissions::from_mode(0o755)).unwrap();
    place.settings.push(("PATH", format!("{}:/usr/bin:/bin", bin.display())));
    place.run("t", 1, &[], "true");
    fs::write(place.inner.state().join("base"), "").unwrap();
    let said = place.run("u", 1, &[], "true");
    assert_eq!(said["exit"]["status"], 0);
    assert!(!pwned.exists());
}
