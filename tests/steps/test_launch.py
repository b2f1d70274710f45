"""The launcher, which runs in the place of Metaflow's command line, with the fake executor."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mfimage.steps import command, launch
from mfimage.steps.command import Launch
from mfimage.steps.docker import Mount, StepCommand, check, environment, needed_mounts
from mfimage.steps.executor import FAILED, REFUSED, FakeExecutor, Refused, Unavailable

ROOT = Path(__file__).parents[2]
STEP = ("step", "work", "--run-id", "1", "--task-id", "2", "--retry-count", "1")


def started(code: str, folder: Path, **options: Any) -> list[str]:
    """Return the launcher's command line for a program in the place of a flow."""
    path = folder / "options.json"
    options.setdefault("record", str(folder / "record"))
    written = {"executor": "fake", "flow": "F", "step": "work", "options": options}
    path.write_text(json.dumps(written))
    return [*command.prefix(str(path)), sys.executable, "-c", code, *STEP]


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """Where it runs, site-packages may hold anything, or nothing."""
    modules = ["mfimage.steps.launch", *{at.partition(":")[0] for at in launch.EXECUTORS.values()}]
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        + "".join(f"import {name}\n" for name in modules)
        + "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(names - sys.stdlib_module_names - {'__main__', 'mfimage'}))"
    )
    done = subprocess.run(
        [sys.executable, "-ISE", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_table_leads_to_classes() -> None:
    for at in launch.EXECUTORS.values():
        module, _, name = at.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_output_environment_and_status_pass_through(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['X'], os.getcwd()); print('e', file=sys.stderr); "
    done = subprocess.run(
        started(f"{code}sys.exit(7)", tmp_path),
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "X": "x"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, f"x {tmp_path}\n", "e\n")
    record = json.loads((tmp_path / "record").read_text())
    assert (record["pathspec"], record["attempt"]) == ("F/1/work/2", 1)
    assert record["argv"][-len(STEP) :] == list(STEP)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_it_ends_by_the_commands_signal(number: int, tmp_path: Path) -> None:
    """Metaflow words it: "Task failed with a segmentation fault"."""
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    done = subprocess.run(started(code, tmp_path), check=False, cwd=tmp_path)
    assert done.returncode == -number
    assert not list(tmp_path.glob("core*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(number: signal.Signals, tmp_path: Path) -> None:
    code = f"import time; open({str(tmp_path / 'began')!r}, 'w').close(); time.sleep(100)"
    process = subprocess.Popen(started(code, tmp_path), stdin=subprocess.PIPE)
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(10) == -number
    assert process.stdin
    process.stdin.close()


def test_the_end_of_the_run_ends_the_command(tmp_path: Path) -> None:
    """The run's process holds the other end of the launcher's stdin."""
    code = f"import time; open({str(tmp_path / 'began')!r}, 'w').close(); time.sleep(100)"
    process = subprocess.Popen(started(code, tmp_path), stdin=subprocess.PIPE)
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    assert process.stdin
    process.stdin.close()
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(("error", "status"), [(Refused, REFUSED), (Unavailable, FAILED)])
def test_errors_decide_whether_metaflow_tries_again(
    error: type[Exception],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(self: FakeExecutor, command: StepCommand) -> None:
        raise error("no room: 3 of 3", hint="make some")  # type: ignore[call-arg]

    monkeypatch.setattr(FakeExecutor, "start", fail)
    monkeypatch.setattr(launch, "run", lambda executor, command: executor.start(command))
    options = started("pass", tmp_path)[3]
    assert launch.main([options, "--", "python", "flow.py", *STEP]) == status
    assert capfd.readouterr().err == "error: no room: 3 of 3\nhint: make some\n"


def test_the_launchers_files_are_private_and_removed(tmp_path: Path) -> None:
    code = (
        "from mfimage.steps.command import *; import os\n"
        "path = Launch(executor='fake', flow='F', step='s', options={}).write()\n"
        "print(path, oct(os.stat(os.path.dirname(path)).st_mode & 0o777))"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    stale, used = tmp_path / "mfimage-steps-1-x", tmp_path / "mfimage-steps-999999999-y"
    for folder in (stale, used):
        folder.mkdir()
        os.utime(folder, (0, 0))
    lock = os.open(used, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    path, mode = done.stdout.split()
    assert mode == "0o700"
    assert not Path(path).exists()
    assert not stale.exists(), "that of a process that was killed"
    assert used.exists(), "its process may have no number here"
    os.close(lock)


def test_a_file_of_options_is_read_as_it_was_written() -> None:
    written = Launch(executor="docker", flow="F", step="s", options={"image": "x", "memory": 5})
    assert Launch.read(written.write()) == written


# The docker command line, without an engine.


def step_command(folder: Path, *argv: str, **env: str) -> StepCommand:
    return StepCommand(
        argv=("python", *(argv or ("flow.py",))), env=env, cwd=str(folder), pathspec="F/1/s/2",
        attempt=0,
    )  # fmt: skip


def test_variables_that_count_inside() -> None:
    env = {"METAFLOW_X": "1", "AWS_Y": "2", "https_proxy": "3", "PATH": "4", "MINE": "5"}
    command = step_command(Path("/x"), **env)
    assert environment(command) == {"METAFLOW_X": "1", "AWS_Y": "2", "https_proxy": "3"}
    assert environment(command, ["MINE"])["MINE"] == "5"


def test_each_folder_is_mounted_once(tmp_path: Path) -> None:
    for name in ("project/.metaflow", "project/flows", "elsewhere/.metaflow", "config"):
        (tmp_path / name).mkdir(parents=True)
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    command = step_command(
        project, "flows/flow.py", "--datastore-root", str(elsewhere / ".metaflow"),
        "--orig-flow-datastore", f"local@{project}/.metaflow",
        METAFLOW_HOME=str(tmp_path / "config"), AWS_CONFIG_FILE=str(tmp_path / "absent"),
    )  # fmt: skip
    further = [Mount(source=str(project / "flows"), read_only=True)]
    assert needed_mounts(command, further) == [
        Mount(source=str(tmp_path / "config"), read_only=True),
        Mount(source=str(elsewhere / ".metaflow")),
        Mount(source=str(project)),
    ]


def test_what_would_hide_the_image_is_not_mounted() -> None:
    with pytest.raises(Refused, match="the folder /usr cannot be mounted"):
        needed_mounts(step_command(Path("/usr")))


def test_a_comma_in_a_path() -> None:
    assert Mount(source="/a,b").argument() == 'type=bind,"source=/a,b","target=/a,b"'


ENGINE = "docker: Error response from daemon: "


@pytest.mark.parametrize(
    ("status", "stderr", "expected"),
    [
        (125, "docker: Cannot connect to the Docker daemon at tcp://x. Is it?", Unavailable),
        (125, 'time=1 level=error msg="error waiting for container: EOF"', Unavailable),
        (125, f"Unable to find image 'x' locally\n{ENGINE}pull access denied", Unavailable),
        (125, f"{ENGINE}write /var: no space left on device", Unavailable),
        (125, f"{ENGINE}Unknown runtime specified x", Refused),
        (
            125,
            f'{ENGINE}no network\ntime=1 level=error msg="error waiting for container: x"',
            Refused,
        ),
        (125, f"Unable to find image\nStatus: Downloaded newer\n{ENGINE}no such network", Refused),
        (127, f'{ENGINE}exec: "python": executable file not found in $PATH', Refused),
        (125, "docker: permission denied while trying to connect to the Docker", Refused),
    ],
)
def test_what_docker_itself_fails_with(status: int, stderr: str, expected: Any) -> None:
    with pytest.raises(expected) as raised:
        check(status, f"{stderr}\n\nRun 'docker run --help' for more information\n")
    assert raised.value.hint


@pytest.mark.parametrize(
    ("status", "stderr"), [(0, "docker: x"), (1, f"{ENGINE}x"), (125, "mine"), (137, "")]
)
def test_what_the_command_exits_with_is_its_own(status: int, stderr: str) -> None:
    check(status, stderr)
