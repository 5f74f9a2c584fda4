//! `e2b/run-turn`: one agent per attempt whatever happens, and nobody acts under an epoch that is over.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use turnmill::local::postgres::passable_tempdir;

/// A sandbox without a server: a directory and the supervisor in it.
pub struct Box {
    pub root: tempfile::TempDir,
    pub uid: Option<u32>,
}

impl Box {
    pub fn new() -> Self {
        let root = passable_tempdir("turnmill-test-").unwrap();
        std::fs::create_dir_all(root.path().join("home/user")).unwrap();
        std::fs::create_dir_all(root.path().join("var/lib/turnmill")).unwrap();
        std::fs::write(root.path().join("run-turn"), turnmill::sandbox::SUPERVISOR).unwrap();
        std::fs::write(root.path().join("input.jsonl"), "{\"the\":\"input\"}\n").unwrap();
        // As the local server does where it can.
        let uid = rustix::process::geteuid().is_root().then(|| 1_500_000_000 + rand::random_range(0..100_000_000));
        if let Some(uid) = uid {
            chown(root.path().join("home/user"), Some(uid), Some(uid)).unwrap();
        }
        Self { root, uid }
    }

    fn command(&self, epoch: u64, verb: &str, args: &[&str]) -> Command {
        self.command_of("t", 1, epoch, verb, args)
    }

    /// The same, for another turn or attempt.
    pub fn command_of(&self, turn: &str, attempt: u32, epoch: u64, verb: &str, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        let script = self.root.path().join("run-turn");
        command.arg(script).args(["--epoch", &epoch.to_string(), verb, "--turn", turn, "--attempt", &attempt.to_string()]).args(args);
        command.env("TURNMILL_ROOT", self.root.path()).env("HOME", self.root.path());
        if let Some(uid) = self.uid {
            command.env("TURNMILL_AGENT_UID", uid.to_string());
        }
        command
    }

    fn run(&self, epoch: u64, verb: &str, args: &[&str]) -> Output {
        self.command(epoch, verb, args).output().unwrap()
    }

    fn ask(&self, epoch: u64, verb: &str, args: &[&str]) -> Value {
        let output = self.run(epoch, verb, args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{verb}: {output:?}"))
    }

    fn start(&self, epoch: u64, script: &str) -> Value {
        self.ask(epoch, "start", &["--input", "/input.jsonl", "--journal-max", "1000000", "--", "bash", "-c", script])
    }

    fn follow(&self, epoch: u64, offset: u64) -> Child {
        self.command(epoch, "follow", &["--offset", &offset.to_string()]).stdout(Stdio::piped()).spawn().unwrap()
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("var/lib/turnmill")
    }

    fn attempt(&self) -> PathBuf {
        self.state().join("turn-t/attempt-1")
    }

    fn pid(&self, of: &str) -> i32 {
        let record = std::fs::read_to_string(self.attempt().join(of)).unwrap();
        record.split(' ').next().unwrap().parse().unwrap()
    }

    fn wait_for(&self, state: &str) -> Value {
        self.wait_for_attempt(1, state)
    }

    pub fn wait_for_attempt(&self, attempt: u32, state: &str) -> Value {
        let since = Instant::now();
        loop {
            let said = self.command_of("t", attempt, 9, "probe", &[]).output().unwrap();
            let said: Value = serde_json::from_slice(&said.stdout).unwrap();
            if said["state"] == state {
                return said;
            }
            assert!(since.elapsed() < Duration::from_secs(30), "{said} is not {state}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        drop(self.run(99, "signal", &["KILL"]));
    }
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    !stat.is_empty() && !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn an_attempt_starts_its_agent_once_however_often_and_by_whomever_it_is_asked() {
    let sandbox = Box::new();
    assert_eq!(sandbox.ask(1, "probe", &[])["state"], "none");
    // All at once, as adopters might.
    let starts: Vec<_> = (1..=8)
        .map(|epoch| {
            let args = ["--input", "/input.jsonl", "--journal-max", "1000000", "--", "bash", "-c", "echo started; sleep 0.3"];
            sandbox.command(epoch, "start", &args).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for start in starts {
        start.wait_with_output().unwrap();
    }
    sandbox.wait_for("exited");
    sandbox.start(9, "echo again");
    let journal = std::fs::read_to_string(sandbox.attempt().join("journal.jsonl")).unwrap();
    assert_eq!(journal, "started\n");
}

#[test]
fn nobody_acts_under_a_lower_epoch_than_the_highest_seen() {
    let sandbox = Box::new();
    sandbox.start(5, "sleep 60");
    assert_eq!(sandbox.ask(6, "probe", &[])["state"], "alive");
    for (verb, args) in [
        ("start", &["--input", "/input.jsonl", "--", "true"][..]),
        ("probe", &[]),
        ("signal", &["KILL"]),
        ("finish", &[]),
        ("follow", &["--offset", "0"]),
    ] {
        let output = sandbox.run(5, verb, args);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(75), &b"{\"state\":\"fenced\"}\n"[..]), "{verb}");
    }
    assert!(runs(sandbox.pid("agent")), "the stale signal did not reach it");
    assert_eq!(sandbox.ask(6, "probe", &[])["state"], "alive", "the same epoch may go on");
}

#[test]
fn the_exit_file_tells_status_size_and_the_end_of_stderr() {
    let sandbox = Box::new();
    let fault = r#"cat; echo 'say "no" \ to	this: ü' >&2; exit 3"#;
    sandbox.start(1, fault);
    let said = sandbox.wait_for("exited");
    let files = json!({ "changed": 0, "list_bytes": 0, "unlisted": "off", "archive": null, "archive_bytes": 0, "unsaved": "off", "carried": false });
    assert_eq!(
        said["exit"],
        json!({
            "status": 3, "journal_bytes": 16, "reason": null, "finish": null, "transcript_bytes": 0, "transcript_kept": true, "ran": true,
            "files": files,
        }),
        "the input was echoed"
    );
    assert_eq!(said["stderr_tail"], "say \"no\" \\ to\tthis: ü");
    if sandbox.uid.is_some() {
        let exit = sandbox.attempt().join("exit.json");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&exit.metadata().unwrap()), 0, "the agent can't forge it");
    }
}

#[test]
fn a_program_that_does_not_exist_ends_the_attempt_and_says_so() {
    let sandbox = Box::new();
    sandbox.ask(1, "start", &["--input", "/input.jsonl", "--journal-max", "0", "--", "no-such-agent", "-p"]);
    let said = sandbox.wait_for("exited");
    assert_eq!(said["exit"]["status"], 127);
    assert!(said["stderr_tail"].as_str().unwrap().contains("\"no-such-agent\" was not found"), "{said}");
}

#[test]
fn a_follower_gets_every_byte_from_its_offset_on_and_ends_with_the_supervisor() {
    let sandbox = Box::new();
    sandbox.start(1, r#"for i in 1 2 3 4 5 6; do echo "line $i"; sleep 0.05; done"#);
    let followers = [sandbox.follow(1, 0), sandbox.follow(1, 7)];
    let outputs = followers.map(|follower| String::from_utf8(follower.wait_with_output().unwrap().stdout).unwrap());
    let journal = std::fs::read_to_string(sandbox.attempt().join("journal.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 6);
    assert_eq!(outputs, [journal.as_str(), &journal[7..]]);
}

#[test]
fn a_killed_supervisor_makes_the_attempt_lost_and_ends_its_followers() {
    let sandbox = Box::new();
    sandbox.start(1, "echo hi; sleep 60");
    let follower = sandbox.follow(1, 0);
    kill(sandbox.pid("supervisor"));
    let said = sandbox.wait_for("lost");
    assert_eq!(said["exit"], Value::Null);
    follower.wait_with_output().unwrap();
    assert_eq!(sandbox.start(10, "echo again")["state"], "lost", "it is not started again");
    let agent = sandbox.pid("agent");
    sandbox.ask(11, "signal", &["KILL"]);
    assert!(!runs(agent), "what is left of it can be ended");
}

#[test]
fn a_signal_reaches_the_whole_process_group_with_its_default_action() {
    let sandbox = Box::new();
    sandbox.start(1, "sleep 61 & sleep 62");
    sandbox.ask(1, "signal", &["INT"]);
    let said = sandbox.wait_for("exited");
    assert_eq!(said["exit"]["status"], 130);
}

#[test]
fn kill_reaches_what_the_agent_s_tools_have_moved_elsewhere() {
    let sandbox = Box::new();
    if sandbox.uid.is_none() {
        eprintln!("not root: the agent's processes can't be told from ours, and only the sandbox's end ends them");
        return;
    }
    sandbox.start(1, "setsid sleep 63 & echo $! > $HOME/pid; wait");
    let path = sandbox.root.path().join("home/user/pid");
    while std::fs::read_to_string(&path).unwrap_or_default().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let stray: i32 = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    sandbox.ask(1, "signal", &["KILL"]);
    sandbox.wait_for("exited");
    assert!(!runs(stray));
}

#[test]
fn an_agent_that_prints_without_end_is_stopped_before_it_fills_the_disk() {
    let sandbox = Box::new();
    sandbox.start(1, "head -c 2000000 /dev/zero; sleep 60");
    let said = sandbox.wait_for("exited");
    assert_eq!((&said["exit"]["reason"], &said["exit"]["journal_bytes"]), (&json!("journal_full"), &json!(2_000_000)));
}

#[test]
fn the_agent_runs_as_its_own_user_in_its_home_and_sees_nothing_of_the_supervisor() {
    let sandbox = Box::new();
    sandbox.start(
        1,
        r#"echo "$(id -u) $PWD ${TURNMILL_ROOT:-none} $HOME"; echo x >> /proc/self/fd/1/../../attempt-1/exit.json 2>/dev/null || true"#,
    );
    sandbox.wait_for("exited");
    let journal = std::fs::read_to_string(sandbox.attempt().join("journal.jsonl")).unwrap();
    if let Some(uid) = sandbox.uid {
        let home = sandbox.root.path().join("home/user");
        assert_eq!(journal.trim(), format!("{uid} {} none {}", home.display(), home.display()));
    } else {
        assert!(journal.contains(" none "), "{journal}");
    }
}

const START: [&str; 8] = ["--input", "/input.jsonl", "--journal-max", "1000000", "--", "bash", "-c", "echo hi; sleep 60"];

#[test]
fn the_first_start_of_a_turn_ends_and_removes_what_the_turn_before_has_left() {
    let sandbox = Box::new();
    sandbox.start(1, "echo hi; sleep 60");
    let (supervisor, agent) = (sandbox.pid("supervisor"), sandbox.pid("agent"));
    for brought in ["in/1", "in/2", "in/10"] {
        std::fs::create_dir_all(sandbox.state().join(brought)).unwrap();
    }
    let started = sandbox.command_of("u", 1, 2, "start", &START).output().unwrap();
    assert!(String::from_utf8_lossy(&started.stdout).contains(r#""state":"alive""#), "{started:?}");
    assert!(!runs(supervisor) && !runs(agent), "nothing of it writes beside the new one");
    let left = |place: &str| sandbox.state().join(place).exists();
    assert_eq!((left("turn-t"), left("in/1"), left("in/2"), left("turn-u/attempt-1/journal.jsonl")), (false, false, true, true));
    assert!(left("in/10"), "a newer worker was just bringing its own");
    let killed = sandbox.command_of("u", 1, 2, "signal", &["KILL"]).output().unwrap();
    assert!(killed.status.success());
}

#[test]
fn a_turn_that_a_worker_of_before_has_started_is_found_and_not_started_again() {
    let sandbox = Box::new();
    sandbox.start(1, "echo hi; sleep 60");
    // As it was: its attempts beside the turns.
    std::fs::rename(sandbox.attempt(), sandbox.state().join("attempt-1")).unwrap();
    std::fs::remove_dir(sandbox.state().join("turn-t")).unwrap();
    assert_eq!(sandbox.ask(2, "probe", &[])["state"], "alive");
    assert_eq!(sandbox.start(2, "echo again")["state"], "alive");
    assert_eq!(std::fs::read_to_string(sandbox.attempt().join("journal.jsonl")).unwrap(), "hi\n");
}

/// Where template and supervisor say which format they have.
#[test]
fn a_template_of_another_format_is_refused_before_anything_starts() {
    let dockerfile = include_str!("../../e2b/e2b.Dockerfile");
    let ours = dockerfile.split_once("RUN echo ").and_then(|(_, rest)| rest.split_once(" > /etc/turnmill-template")).unwrap().0;
    for (format, fits) in [(ours, true), ("0", false), ("2", false), ("", false)] {
        let sandbox = Box::new();
        std::fs::create_dir(sandbox.root.path().join("etc")).unwrap();
        std::fs::write(sandbox.root.path().join("etc/turnmill-template"), format!("{format}\n")).unwrap();
        let output = sandbox.run(1, "start", &["--input", "/input.jsonl", "--journal-max", "1000", "--", "true"]);
        assert_eq!(output.status.code(), Some(if fits { 0 } else { 69 }), "{format}: {output:?}");
        assert_eq!(sandbox.attempt().exists(), fits, "{format}");
        if fits {
            sandbox.wait_for("exited");
        } else {
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains(&format!("format is {format} ")) && said.contains("the worker's is 1"), "{said}");
        }
    }
}
