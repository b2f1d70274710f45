"""``devcontainer.json``: what of it is used, what is refused, and the one that we write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.errors import OptionError
from mfimage.steps.devcontainer import DevContainer, find, read, strip_comments, write
from tests.steps.running import Flows, metadata_of

FLOW = """
import os
from metaflow import FlowSpec, devcontainer, resources, step

class F(FlowSpec):
    @devcontainer
    @resources(memory=300)
    @step
    def start(self):
        self.env = dict(os.environ)
        self.folders = os.path.exists("/work/here/flow.py"), os.getcwd()
        self.created = open("/tmp/created").read()
        self.extra = open("/extra/x").read()
        self.user = os.getuid()
        self.host = os.uname().nodename
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""
CONFIG = """
// as editors write it
{
    "name": "Mine",  /* a comment */
    IMAGE,
    "workspaceFolder": "/work/here",
    "containerEnv": {
        "FOLDER": "${containerWorkspaceFolder}",
        "URL": "http://x//y",
        "TOKEN": "${localEnv:MY_TOKEN}",
        "ABSENT": "${localEnv:NOWHERE:by default}",
    },
    "remoteEnv": {"PATH": "${containerEnv:PATH}:/more", "HOME": "/tmp"},
    "containerUser": "root",
    "mounts": [
        "source=${localWorkspaceFolder}/extra,target=/extra,type=bind,consistency=cached",
    ],
    "runArgs": ["--hostname", "my-host"],
    "onCreateCommand": "printf '%s ' $FOLDER > /tmp/created; echo preparing",
    "postCreateCommand": {"one": ["sh", "-c", "printf '%s ' $PWD >> /tmp/created"]},
    "customizations": {"vscode": {"extensions": ["ms-python.python",],},},
    "forwardPorts": [8000],
}
"""


def given(folder: Path, text: str, name: str = ".devcontainer/devcontainer.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "build"])
def test_a_step_runs_as_it_is_described(kind: str, flows: Flows, step_image: str) -> None:
    flows.write(FLOW)
    (flows.folder / "extra").mkdir()
    (flows.folder / "extra" / "x").write_text("mounted")
    (flows.folder / "Dockerfile").write_text(
        f"FROM {step_image}\nARG WHAT=no\nENV BUILT=$WHAT\nCOPY extra /copied\n"
    )
    build = '"build": {"dockerfile": "../Dockerfile", "context": "..", "args": {"WHAT": "yes"}}'
    source = f'"image": "{step_image}"' if kind == "image" else build
    given(flows.folder, CONFIG.replace("IMAGE", source))
    printed = flows.run("run", MY_TOKEN="s3cret")
    assert "preparing" in printed
    assert "s3cret" not in printed
    (task,) = flows.tasks("start")
    env = task["env"].data
    assert (env["FOLDER"], env["URL"], env["TOKEN"], env["ABSENT"]) == (
        "/work/here", "http://x//y", "s3cret", "by default",
    )  # fmt: skip
    assert env["PATH"].endswith("/bin:/more")
    assert env.get("BUILT") == ("yes" if kind == "build" else None)
    assert not [name for name in env if name.startswith(("MFIMAGE_SET", "MFIMAGE_REMOTE"))]
    assert task["folders"].data == (True, str(flows.folder))
    assert task["created"].data == "/work/here /work/here "
    assert (task["extra"].data, task["user"].data, task["host"].data) == ("mounted", 0, "my-host")
    assert task.stdout == ""
    assert metadata_of(task)["step.executor"] == "docker"


@pytest.mark.docker
@pytest.mark.slow
def test_a_command_that_fails_fails_the_task(flows: Flows, step_image: str) -> None:
    flows.write(FLOW)
    config = {"image": step_image, "postCreateCommand": "echo nothing to install; exit 7"}
    given(flows.folder, json.dumps(config))
    printed = flows.run("run", fails=True)
    assert "error: echo nothing to install; exit 7: exit status 7" in printed


@pytest.mark.parametrize("other", ["docker"])
def test_one_decorator_says_where_a_step_runs(other: str, flows: Flows) -> None:
    flows.write(
        FLOW.replace("    @devcontainer", f"    @{other}\n    @devcontainer").replace(
            "import FlowSpec,", f"import FlowSpec, {other},"
        )
    )
    printed = flows.run("run", fails=True)
    assert f"step start: @devcontainer and @{other} both say where it runs" in printed


def test_features_need_the_devcontainer_command(flows: Flows) -> None:
    flows.write(FLOW)
    given(flows.folder, '{"image": "x", "features": {"ghcr.io/devcontainers/features/git:1": {}}}')
    docker = flows.folder / "bin"
    docker.mkdir()
    printed = flows.run("run", fails=True, PATH=str(docker))
    assert "features need the command devcontainer, which is not on PATH" in printed
    assert "npm install -g @devcontainers/cli" in printed


def test_features_are_built_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one pulls features from a registry; what it is called with is ours."""
    from mfimage.steps.devcontainer import build_image

    program = tmp_path / "bin" / "devcontainer"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.called"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    path = given(tmp_path, '{"image": "x", "features": {"./local": {"version": "1"}}}')
    image = build_image(read(path, {}))
    called = (tmp_path / "bin" / "devcontainer.called").read_text().split()
    assert called == [
        "build", "--workspace-folder", str(tmp_path), "--config", str(path), "--image-name", image,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options", ['["--build-arg", "K=${localEnv:TOKEN}"]', '["--build-arg=K=${env:TOKEN}"]']
)
def test_build_options_have_no_values_of_this_machine(options: str, tmp_path: Path) -> None:
    path = given(tmp_path, f'{{"build": {{"options": {options}}}}}')
    with pytest.raises(OptionError, match=r"build\.options: .*other users can read") as raised:
        read(path, {"TOKEN": "s3cret"})
    assert "s3cret" not in str(raised.value)


def test_build_arguments_are_not_on_a_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mfimage.steps.devcontainer import build_image

    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\n" "$@" "TOKEN is $TOKEN" > "$0.called"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    path = given(tmp_path, '{"build": {"args": {"TOKEN": "${localEnv:SECRET}", "HOME": "/x"}}}')
    build_image(read(path, {"SECRET": "s3cret"}))
    called = (tmp_path / "bin" / "docker.called").read_text()
    assert "--build-arg\nTOKEN\n--build-arg\nHOME=/x\n" in called
    assert called.count("s3cret") == called.count("TOKEN is s3cret") == 1


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('"dockerComposeFile": "x.yml"', "dockerComposeFile is not supported"),
        ('"privileged": true', "privileged is not supported"),
        ('"initializeCommand": "x"', "initializeCommand is not supported"),
        ('"postStartCommand": "x"', "postStartCommand is not supported"),
        ('"workspaceMount": "x"', "workspaceMount is not supported"),
        ('"updateRemoteUserUID": false', "updateRemoteUserUID is not supported"),
        ('"runargs": []', "runargs is not supported"),
        ('"runArgs": ["--name=x"]', "runArgs: --name=x is not supported"),
        ('"runArgs": ["-e", "K=${localEnv:TOKEN}"]', "other users can read command lines"),
        ('"runArgs": ["--env=K=${localEnv:TOKEN}"]', "other users can read command lines"),
        ('"build": {}', "needs image or build, and not both"),
        ('"mounts": [{"source": "x", "external": true}]', "mounts: "),
        ('"remoteUser": 1000', "remoteUser is not a string: 1000"),
        ('"containerEnv": {"X": 1}', "containerEnv.X is not a string: 1"),
        ('"workspaceFolder": "${nothing}"', r"the variable \$\{nothing\} is unknown"),
        ('"remoteEnv": {"X": "${localenv:X}"}', r"the variable \$\{localenv:X\} is unknown"),
        ('"postCreateCommand": 5', "postCreateCommand: 5 is not a command"),
        ('"x', "is not JSON with comments"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(more: str, expected: str, tmp_path: Path) -> None:
    path = given(tmp_path, f'{{"image": "x", {more}}}')
    with pytest.raises(OptionError, match=expected):
        read(path, {})


def test_what_is_read(tmp_path: Path) -> None:
    path = given(tmp_path, '{"image": "${localEnv:BASE:python}:3", "remoteUser": "me"}')
    assert read(path, {"BASE": "mine"}) == DevContainer(
        path=path,
        workspace=tmp_path,
        inside=f"/workspaces/{tmp_path.name}",
        image="mine:3",
        user="me",
        mounts=[],
        run_args=[],
        commands=[],
    )


def test_where_it_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no devcontainer\.json in"):
        find(tmp_path)
    one = given(tmp_path, "{}", ".devcontainer/one/devcontainer.json")
    assert find(tmp_path) == one
    two = given(tmp_path, "{}", ".devcontainer/two/devcontainer.json")
    with pytest.raises(OptionError, match=r"one/devcontainer\.json, .*two/devcontainer\.json"):
        find(tmp_path)
    assert find(tmp_path, ".devcontainer/two") == two
    hidden = given(tmp_path, "{}", ".devcontainer.json")
    assert find(tmp_path) == hidden
    usual = given(tmp_path, "{}")
    assert find(tmp_path) == usual
    with pytest.raises(OptionError, match="there is no file"):
        find(tmp_path, "elsewhere.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "// no /* comment */", }', {"a": "// no /* comment */"}),
        ('{"a": [1, 2,], // x,}\n"b": "\\"//",}', {"a": [1, 2], "b": '"//'}),
        ('/* a\n * b */ {"a": ",}"}', {"a": ",}"}),
        ('{"a": 1 /* , */ , /* } */ }', {"a": 1}),
    ],
)
def test_comments_and_trailing_commas(text: str, expected: Any) -> None:
    assert json.loads(strip_comments(text)) == expected


def test_what_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, "train", image="team/train:1", title="TrainFlow/train")
    assert path == tmp_path / ".devcontainer" / "train" / "devcontainer.json"
    assert read(path, {"USER": "alice"}).image == "team/train:1"
    assert write(tmp_path, "train", image="team/train:1", title="TrainFlow/train") == path
    with pytest.raises(OptionError, match="exists"):
        write(tmp_path, "train", image="team/train:2", title="TrainFlow/train")
    write(tmp_path, "train", image="team/train:2", title="TrainFlow/train", overwrite=True)
    assert read(path, {}).image == "team/train:2"


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    run = CliRunner()
    done = run.invoke(main, ["devcontainer", "train.py:fit", "--image", "team/fit:1"])
    assert (done.exit_code, done.stdout) == (0, ".devcontainer/fit/devcontainer.json\n")
    found = json.loads((tmp_path / done.stdout.strip()).read_text())
    assert (found["name"], found["image"]) == ("train/fit", "team/fit:1")
    done = run.invoke(main, ["devcontainer", "train.py:fit", "--image", "team/fit:2"])
    assert done.exit_code == 1
    assert "hint: --force replaces it" in done.stderr
    done = run.invoke(main, ["devcontainer", "train.py:fit", "--image", "team/fit:2", "--force"])
    assert done.exit_code == 0
    done = run.invoke(main, ["devcontainer", "fit", "--image", "x"])
    assert "error: step: there is no file ''" in done.stderr


@pytest.mark.docker
@pytest.mark.slow
def test_the_devcontainer_command_opens_it(tmp_path: Path, step_image: str) -> None:
    command = shutil.which("devcontainer")
    if command is None:
        pytest.skip("npm install -g @devcontainers/cli")
    (tmp_path / "flow.py").write_text("")
    path = write(tmp_path, "start", image=step_image, title="F/start")
    place = ["--workspace-folder", str(tmp_path), "--config", str(path)]
    up = subprocess.run([command, "up", *place], capture_output=True, text=True, check=True)
    container = json.loads(up.stdout.strip().splitlines()[-1])["containerId"]
    try:
        code = "import metaflow, os; print(os.listdir())"
        ran = subprocess.run(
            [command, "exec", *place, "python", "-c", code],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "flow.py" in ran.stdout
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)
