"""The official Python SDK, unmodified, against the local server. E2B_API_URL and E2B_SANDBOX_URL point there.

Paths are relative to the home: the local server's sandboxes are directories, so that an absolute path in a command is
this machine's."""

import time
import urllib.request

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    FileNotFoundException,
    FileType,
    FilesystemEventType,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import PtySize


def until(look, what, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain: {what}")


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox.create(timeout=120, metadata={"suite": "python"}, envs={"FROM_CREATE": "1"})
    yield sandbox
    sandbox.kill()


# ---- sandboxes


def test_a_sandbox_is_created_found_listed_and_killed():
    sandbox = Sandbox.create(timeout=60, metadata={"who": "a b&c", "n": "1"})
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert (info.sandbox_id, info.state, info.metadata) == (sandbox.sandbox_id, SandboxState.RUNNING, {"who": "a b&c", "n": "1"})
    assert (info.end_at - info.started_at).total_seconds() == pytest.approx(60, abs=2)
    found = Sandbox.list(query=SandboxQuery(metadata={"who": "a b&c"})).next_items()
    assert [row.sandbox_id for row in found] == [sandbox.sandbox_id]
    assert Sandbox.list(query=SandboxQuery(metadata={"who": "somebody else"})).next_items() == []
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert not sandbox.is_running()
    with pytest.raises(NotFoundException):
        Sandbox.get_info(sandbox.sandbox_id)


def test_lists_have_pages():
    made = [Sandbox.create(timeout=60, metadata={"page": "yes"}) for _ in range(5)]
    pages, seen = Sandbox.list(query=SandboxQuery(metadata={"page": "yes"}), limit=2), []
    while pages.has_next:
        page = pages.next_items()
        assert len(page) <= 2
        seen += [row.sandbox_id for row in page]
    assert sorted(seen) == sorted(one.sandbox_id for one in made)
    for one in made:
        one.kill()


def test_a_deadline_is_moved_and_kept():
    sandbox = Sandbox.create(timeout=60)
    sandbox.set_timeout(1)
    until(lambda: not sandbox.is_running(), "it is over")
    with pytest.raises(TimeoutException):
        sandbox.commands.run("true")


def test_pause_and_connect_keep_processes_and_files():
    sandbox = Sandbox.create(timeout=60)
    sandbox.files.write("kept.txt", "still here")
    handle = sandbox.commands.run("i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.02; done", background=True)
    until(lambda: sandbox.files.exists("count"), "it counts")
    sandbox.pause()
    assert sandbox.get_info().state == SandboxState.PAUSED
    assert Sandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED])).next_items()[0].sandbox_id == sandbox.sandbox_id
    assert not sandbox.is_running()
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert again.files.read("kept.txt") == "still here"
    first = int(again.files.read("count") or 0)
    until(lambda: int(again.files.read("count") or 0) > first, "it counts on")
    assert again.commands.kill(handle.pid)
    again.kill()


def test_metrics_and_network():
    sandbox = Sandbox.create(timeout=60)
    assert sandbox.get_metrics()[0].mem_total > 0
    sandbox.update_network({"deny_out": ["0.0.0.0/0"]})
    sandbox.kill()


def test_a_wrong_key_and_a_wrong_timeout_are_refused():
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_wrong")
    with pytest.raises(Exception, match="24 hours"):
        Sandbox.create(timeout=999999)


def test_an_idempotency_key_makes_one_sandbox():
    one = Sandbox.create(timeout=60, idempotency_key="python-suite-1") if "idempotency_key" in Sandbox.create.__doc__ else None
    if one is None:
        pytest.skip("this SDK has no such option")
    two = Sandbox.create(timeout=60, idempotency_key="python-suite-1")
    assert one.sandbox_id == two.sandbox_id
    one.kill()


# ---- commands


def test_a_command_has_streams_and_an_exit_code(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo nope >&2; exit 3")
    assert (failed.value.exit_code, failed.value.stderr) == (3, "nope\n")
    with pytest.raises(CommandExitException) as missing:
        sandbox.commands.run("no-such-program")
    assert missing.value.exit_code == 127


def test_output_comes_while_it_is_printed(sandbox):
    seen = []
    handle = sandbox.commands.run("echo one; read line; echo $line", background=True, stdin=True)
    for stdout, _, _ in handle:
        seen.append(stdout)
        if len(seen) == 1:
            sandbox.commands.send_stdin(handle.pid, "two\n")
    assert seen == ["one\n", "two\n"]


def test_stdin_can_be_closed(sandbox):
    handle = sandbox.commands.run("cat; echo end", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "a")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "aend\n"


def test_environment_directory_and_user(sandbox):
    assert sandbox.commands.run("echo $FROM_CREATE $HERE", envs={"HERE": "2"}).stdout == "1 2\n"
    sandbox.files.make_dir("deep/er")
    assert sandbox.commands.run("pwd", cwd="deep/er").stdout.strip().endswith("/home/user/deep/er")
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("pwd", cwd="/no/such/place")
    assert sandbox.commands.run("echo $USER", user="root").stdout == "root\n"
    with pytest.raises(AuthenticationException):
        sandbox.commands.run("true", user="nobody-here")
    assert "E2B_SANDBOX=true" in sandbox.commands.run("env").stdout


def test_background_commands_are_listed_joined_and_killed(sandbox):
    handle = sandbox.commands.run("echo early; sleep 0.6; echo late; exit 5", background=True)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    time.sleep(0.3)
    joined = sandbox.commands.connect(handle.pid)
    with pytest.raises(CommandExitException) as ended:
        joined.wait()
    # What was printed before is not repeated; the exit code is.
    assert (ended.value.stdout, ended.value.exit_code) == ("late\n", 5)
    with pytest.raises(CommandExitException) as later:
        sandbox.commands.connect(handle.pid).wait()
    assert later.value.exit_code == 5, "kept for half a minute"
    sleeper = sandbox.commands.run("sleep 60", background=True)
    assert sandbox.commands.kill(sleeper.pid) is True
    assert sandbox.commands.kill(999999) is False


def test_a_command_whose_time_is_over_is_killed(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 60.25", timeout=1)
    until(lambda: "60.25" not in sandbox.commands.run("ps -eo args | grep [6]0.25 || true").stdout, "it is gone")


def test_much_output_comes_whole(sandbox):
    assert len(sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' 'x'").stdout) == 3000000


# ---- files


def test_files_are_written_read_renamed_and_removed(sandbox):
    written = sandbox.files.write("a/b/c.txt", "grüße")
    assert (written.name, written.path) == ("c.txt", "/home/user/a/b/c.txt")
    assert sandbox.files.read("a/b/c.txt") == "grüße"
    assert bytes(sandbox.files.read("/home/user/a/b/c.txt", format="bytes")) == "grüße".encode()
    info = sandbox.files.get_info("a/b/c.txt")
    assert (info.type, info.size, info.permissions, info.owner) == (FileType.FILE, 7, "-rw-r--r--", "user" if info.owner == "user" else "root")
    renamed = sandbox.files.rename("a/b/c.txt", "a/d.txt")
    assert renamed.path == "/home/user/a/d.txt"
    assert not sandbox.files.exists("a/b/c.txt")
    sandbox.files.remove("a")
    assert not sandbox.files.exists("a/d.txt")
    with pytest.raises(FileNotFoundException):
        sandbox.files.read("a/d.txt")
    with pytest.raises(NotFoundException):
        sandbox.files.get_info("a")


def test_directories_are_made_and_listed(sandbox):
    assert sandbox.files.make_dir("dir/sub") is True
    assert sandbox.files.make_dir("dir/sub") is False
    sandbox.files.write_files([{"path": "dir/one.txt", "data": "1"}, {"path": "dir/sub/two.txt", "data": b"22"}])
    assert [(entry.name, entry.type) for entry in sandbox.files.list("dir")] == [("one.txt", FileType.FILE), ("sub", FileType.DIR)]
    assert [entry.path for entry in sandbox.files.list("dir", depth=2)][-1] == "/home/user/dir/sub/two.txt"
    with pytest.raises(NotFoundException):
        sandbox.files.list("no/such/dir")


def test_uploads_may_be_raw_packed_and_labelled(sandbox):
    sandbox.files.write("raw.bin", b"\0\1\2" * 1000, use_octet_stream=True)
    assert bytes(sandbox.files.read("raw.bin", format="bytes")) == b"\0\1\2" * 1000
    sandbox.files.write("packed.txt", "z" * 100000, gzip=True)
    assert sandbox.files.read("packed.txt", gzip=True) == "z" * 100000
    sandbox.files.write("labelled.txt", "x", metadata={"kind": "note"})
    assert sandbox.files.get_info("labelled.txt").metadata == {"kind": "note"}


def test_signed_urls_need_no_token(sandbox):
    sandbox.files.write("signed.txt", "by url")
    url = sandbox.download_url("signed.txt", use_signature_expiration=60)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert urllib.request.urlopen(urllib.request.Request(url, headers=headers)).read() == b"by url"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url.replace("signed.txt", "other.txt"), headers=headers))
    assert refused.value.code == 401


def test_a_watched_directory_tells_what_happens(sandbox):
    sandbox.files.make_dir("watched")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.commands.run("echo x > watched/f; mv watched/f watched/g; rm watched/g")
    events = []

    def seen():
        events.extend((event.type, event.name) for event in handle.get_new_events())
        return (FilesystemEventType.REMOVE, "g") in events

    until(seen, "the last event")
    assert (FilesystemEventType.CREATE, "f") in events and (FilesystemEventType.WRITE, "f") in events
    assert (FilesystemEventType.RENAME, "f") in events
    handle.stop()


# ---- terminals


def test_a_terminal_has_a_size_and_an_echo(sandbox):
    output = []
    terminal = sandbox.pty.create(PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    for _, _, data in terminal:
        if data:
            output.append(data)
    assert b"30 100" in b"".join(output)
    resized = sandbox.pty.create(PtySize(rows=30, cols=100))
    sandbox.pty.resize(resized.pid, PtySize(rows=40, cols=120))
    sandbox.pty.send_stdin(resized.pid, b"stty size; exit\n")
    assert b"40 120" in b"".join(data for _, _, data in resized if data)
