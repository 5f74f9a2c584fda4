"""The official SDK's template builder on e2b/e2b.Dockerfile, against the local server, which builds nothing but keeps
what it was asked for."""

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
from e2b import BuildException, Sandbox, Template

DOCKERFILE = Path(__file__).parents[2] / "e2b" / "e2b.Dockerfile"


def acts(act, info, **detail):
    with urllib.request.urlopen(os.environ["E2B_API_URL"] + "/_local/ledger") as ledger:
        rows = [row["detail"] for row in json.load(ledger) if (row["act"], row["sandbox"]) == (act, info.template_id)]
    return [row for row in rows if detail.items() <= row.items()]


@pytest.fixture(scope="module")
def built():
    log = []
    template = Template().from_dockerfile(str(DOCKERFILE))
    info = Template.build(template, "turnmill-claude", cpu_count=2, memory_mb=4096, on_build_logs=lambda entry: log.append(entry.message))
    (build,) = acts("build", info, build=info.build_id)
    return info, build["request"], log


def args(request, kind):
    return [step["args"] for step in request["steps"] if step["type"] == kind]


def test_the_template_is_asked_for_by_name_and_size(built):
    info, _, log = built
    (asked,) = acts("template", info, build=info.build_id)
    assert (asked["name"], asked["cpuCount"], asked["memoryMB"]) == ("turnmill-claude", 2, 4096)
    assert any("claude-code" in line for line in log), "the build's log reaches the builder"
    assert Template.exists("turnmill-claude") and not Template.exists("no-such-template")


def test_the_dockerfile_is_read_whole_and_without_a_warning(capsys):
    Template().from_dockerfile(str(DOCKERFILE))
    assert capsys.readouterr().out == ""


def test_its_steps_give_a_pinned_agent_and_end_as_a_user_without_a_start_command(built):
    _, request, _ = built
    assert request["fromImage"].startswith("node:24")
    commands = "\n".join(command for command, *_ in args(request, "RUN"))
    assert re.search(r"@anthropic-ai/claude-code@\d+\.\d+\.\d+(\s|$)", commands), "pinned"
    assert {"git", "ripgrep", "e2fsprogs", "procps", "curl", "ca-certificates"} <= set(commands.split())
    assert args(request, "USER")[0] == ["root"] and args(request, "USER")[-1] == ["user"]
    # It would run at build time, for 20 s, and never in a sandbox.
    assert "startCmd" not in request and "readyCmd" not in request
    assert args(request, "COPY") == [], "it holds nothing of Turnmill"


@pytest.mark.parametrize(("spec", "works", "status"), [("", True, 0), ("", False, 0), ("https://example.com/uspark.tgz", True, 0), ("nonsense", False, 1)])
def test_it_builds_with_and_without_a_uspark_cli(built, tmp_path, spec, works, status):
    _, request, _ = built
    (step,) = [command for command, *_ in args(request, "RUN") if "uspark" in command]
    assert ["USPARK_CLI", ""] in args(request, "ENV")
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n' + (f"cp {npm} {tmp_path}/uspark\n" if works else "exit 1\n"))
    npm.chmod(0o755)
    ran = subprocess.run(["sh", "-ec", step], env={"USPARK_CLI": spec, "PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
    assert ran.returncode == status, ran
    if spec:
        assert (tmp_path / "asked").read_text() == f"install -g {spec}\n"
    else:
        assert "has no uspark CLI" in ran.stdout and not (tmp_path / "asked").exists()


def test_a_sandbox_of_it_is_made_by_name_and_knows_its_template(built):
    info, _, _ = built
    sandbox = Sandbox.create("turnmill-claude", timeout=60)
    assert sandbox.get_info().template_id == info.template_id
    assert sandbox.commands.run("echo $E2B_TEMPLATE_ID").stdout.strip() == info.template_id
    sandbox.kill()


def test_another_build_of_the_name_is_the_same_template(built):
    info, _, _ = built
    again = Template.build(Template().from_dockerfile(str(DOCKERFILE)), "turnmill-claude:2", tags=["stable"])
    assert again.template_id == info.template_id and again.build_id != info.build_id
    assert again.tags == ["2", "stable"]


def test_files_are_uploaded_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    template = Template(file_context_path=tmp_path).from_image("debian:12").copy("a.txt", "/a.txt")
    first = Template.build(template, "with-files")
    Template.build(template, "with-files")
    (upload,) = acts("template-files", first)
    assert upload["bytes"] > 0


def test_what_can_t_be_built_is_refused():
    with pytest.raises(BuildException, match="lower-case"):
        Template.build(Template().from_image("debian:12"), "Not A Name")
    with pytest.raises(BuildException, match="even"):
        Template.build(Template().from_image("debian:12"), "odd", memory_mb=1023)
