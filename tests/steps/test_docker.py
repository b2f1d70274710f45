"""Steps in containers of a real engine: what fails how, and what is passed on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.steps.running import ROOT, Flows, containers, metadata_of
from tests.support.s3 import Bucket

pytestmark = [pytest.mark.docker, pytest.mark.slow]

FLOW = """
import os, signal, subprocess, sys, time
from metaflow import FlowSpec, card, catch, current, docker, environment, resources, retry, step

class F(FlowSpec):
    {decorators}
    @step
    def start(self):
        {body}
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""


def write(flows: Flows, body: str, decorators: str = "@docker(image=IMAGE)") -> None:
    flows.write(FLOW.format(body=body.strip(), decorators=decorators))


@pytest.fixture
def wrote(flows: Flows, step_image: str) -> Callable[..., Flows]:
    """Write a flow of one step, in the image with Metaflow."""

    def write(body: str, options: str = "", further: str = "") -> Flows:
        decorators = f"@docker(image={step_image!r}, {options})\n    {further}"
        flows.write(FLOW.format(body=body.strip(), decorators=decorators))
        return flows

    return write


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_memory_that_runs_out_is_told_with_what_to_do(wrote: Callable[..., Flows]) -> None:
    flows = wrote("self.x = len(b'x' * 400_000_000)", "memory=128")
    printed = flows.run("run", fails=True)
    assert "error: killed: out of memory, 128 MB\n" in printed, printed
    assert "@resources(memory=...)" in printed, printed


def test_memory_that_runs_out_in_a_child_process(wrote: Callable[..., Flows]) -> None:
    code = "x = len(b'x' * 400_000_000)"
    flows = wrote(f"subprocess.run([sys.executable, '-c', {code!r}], check=True)", "memory=128")
    assert "error: killed: out of memory, 128 MB\n" in flows.run("run", fails=True)


def test_a_killed_process_is_not_out_of_memory(wrote: Callable[..., Flows]) -> None:
    flows = wrote("os.kill(os.getpid(), signal.SIGKILL)", "memory=128")
    assert "memory" not in flows.run("run", fails=True)


WAITING = """
        open("started", "w").close()
        try:
            time.sleep(100)
        finally:
            open("cleaned", "w").close()
"""
DEAF = """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        open("started", "w").close()
        time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("receiver", ["terminal", "run", "launcher"])
def test_no_container_outlives_its_run(
    receiver: str, number: signal.Signals, wrote: Callable[..., Flows]
) -> None:
    """Whatever ends it: the user's code is interrupted, as it is by Ctrl-C on this machine."""
    flows = wrote(WAITING)
    process = flows.start("run")
    wait_for((flows.folder / "started").exists)
    pathspec = flows.latest().pathspec
    assert len(containers(pathspec)) == 1
    if receiver == "terminal":
        os.killpg(process.pid, number)
    elif receiver == "run":
        os.kill(process.pid, number)
    else:
        found = subprocess.run(
            ["pgrep", "--parent", str(process.pid), "--full", "launch.py"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        os.kill(int(found.stdout), number)
    process.communicate(timeout=60)
    wait_for(lambda: not containers(pathspec))
    assert (flows.folder / "cleaned").exists()


def test_code_that_does_not_end_is_killed(wrote: Callable[..., Flows]) -> None:
    flows = wrote(DEAF)
    process = flows.start("run")
    wait_for((flows.folder / "started").exists)
    pathspec = flows.latest().pathspec
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    wait_for(lambda: not containers(pathspec))


def attempts(printed: str) -> int:
    return len(re.findall(r"/start/\d+ .*Task is starting", printed))


RETRY = "@retry(times=1, minutes_between_retries=0)"


def test_an_image_that_cannot_be_pulled_is_tried_again(flows: Flows) -> None:
    flows.write(
        FLOW.format(
            decorators=f'@docker(image="localhost:9/none/such:1")\n    {RETRY}', body="pass"
        )
    )
    printed = flows.run("run", fails=True)
    assert "error: the image cannot be pulled: " in printed, printed
    assert "hint: check image=" in printed, printed
    assert attempts(printed) == 2


def test_an_engine_that_is_gone_is_tried_again(wrote: Callable[..., Flows]) -> None:
    flows = wrote("pass", further=RETRY)
    printed = flows.run("run", fails=True, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert "error: the Docker engine is not available: " in printed, printed
    assert "hint: `docker version`" in printed, printed
    assert attempts(printed) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("network='nowhere'", "network nowhere not found"),
        ("runtime='nothing'", "nothing"),
        ("cpu=4096", "hint: lower cpu="),
        ("memory=1", "hint: raise memory="),
        ("user='nameless'", "unable to find user nameless"),
        ("gpus=1", "hint: the engine has no GPUs"),
    ],
)
def test_a_refused_option_is_not_tried_again(
    options: str, expected: str, wrote: Callable[..., Flows]
) -> None:
    flows = wrote("pass", options, RETRY)
    printed = flows.run("run", fails=True)
    assert expected in printed, printed
    assert attempts(printed) == 1


def test_an_image_without_python(flows: Flows, step_image: str) -> None:
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", "mfimage-test-step:bare", "-"],
        input=f"FROM {step_image}\nENV PATH=/nowhere\n", text=True, check=True, capture_output=True,
    )  # fmt: skip
    flows.write(FLOW.format(decorators='@docker(image="mfimage-test-step:bare")', body="pass"))
    printed = flows.run("run", fails=True)
    assert "hint: the image needs python on its PATH" in printed, printed


@contextmanager
def relay(path: Path) -> Iterator[Callable[[], None]]:
    """Pass a Unix socket on to the engine's, until what it yields is called."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    opened: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(host.removeprefix("unix://"))
                opened.extend((client, engine))
                for pair in ((client, engine), (engine, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def cut() -> None:
        for each in (listener, *opened):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield cut
        finally:
            cut()


def test_an_engine_that_goes_away_is_tried_again(
    wrote: Callable[..., Flows], tmp_path: Path
) -> None:
    flows = wrote(WAITING, further=RETRY)
    path = tmp_path / "engine.sock"
    with relay(path) as cut:
        process = flows.start("run", DOCKER_HOST=f"unix://{path}")
        wait_for((flows.folder / "started").exists)
        cut()
        printed, _ = process.communicate(timeout=60)
    expected = "error: the Docker engine is not available: error waiting for container"
    assert expected in printed, printed
    assert attempts(printed) == 2
    wait_for(lambda: not containers(flows.latest().pathspec))


def test_an_image_is_needed(flows: Flows) -> None:
    flows.write(FLOW.format(decorators="@docker", body="pass"))
    printed = flows.run("run", fails=True)
    assert "@docker of step start: no image. Set image=" in printed, printed


def test_what_is_passed_on(wrote: Callable[..., Flows], monkeypatch: pytest.MonkeyPatch) -> None:
    """Metaflow's variables, credentials and proxies; not what belongs to this machine."""
    flows = wrote(
        "self.env = dict(os.environ); self.path = sys.path; self.ids = os.getuid(), os.getgid()"
    )
    passed = {"AWS_SECRET_ACCESS_KEY": "hush", "MFIMAGE_X": "1", "https_proxy": "http://proxy:1"}
    kept = {"MY_TOKEN": "mine", "VIRTUAL_ENV": "/venv", "LD_LIBRARY_PATH": "/lib"}
    flows.run("run", **passed, **kept)
    (task,) = flows.tasks("start")
    env = task["env"].data
    assert env.items() >= passed.items()
    assert not {*kept} & {*env}
    assert env["PATH"] != os.environ["PATH"]
    assert (env["METAFLOW_USER"], env["HOME"]) == ("alice", "/tmp")
    assert task["ids"].data == (os.getuid(), os.getgid())
    assert metadata_of(task)["step.executor"] == "docker"
    assert metadata_of(task)["step.image"] == "mfimage-test-step:1"


def test_no_value_is_on_a_command_line(wrote: Callable[..., Flows]) -> None:
    flows = wrote(WAITING, further='@environment(vars={"TOKEN": "s3cret-token"})')
    process = flows.start("run", AWS_SECRET_ACCESS_KEY="s3cret-key")
    wait_for((flows.folder / "started").exists)
    shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True)
    files = [*Path("/tmp").glob("mfimage-steps-*/*")]
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert "--env TOKEN" in shown.stdout
    assert "s3cret" not in shown.stdout
    assert not [each for each in files if each.is_file() and "s3cret" in each.read_text()]


def test_code_beside_the_flow_and_on_the_path(wrote: Callable[..., Flows], tmp_path: Path) -> None:
    flows = wrote("import beside, elsewhere; self.x = beside.x, elsewhere.x")
    (flows.folder / "beside.py").write_text("x = 1\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "elsewhere.py").write_text("x = 2\n")
    flows.run("run", PYTHONPATH=str(tmp_path / "src"))
    assert flows.tasks("start")[0]["x"].data == (1, 2)


def test_an_image_that_has_mfimage(flows: Flows, step_image: str) -> None:
    """Metaflow refuses to load an extension that it finds twice."""
    tag = "mfimage-test-step:with"
    here = flows.folder / "image"
    for name in ("mfimage", "metaflow_extensions"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, here / "site" / name, ignore=ignored)
    about = here / "site" / "mfimage-0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mfimage\nVersion: 0.0\n")
    (about / "top_level.txt").write_text("metaflow_extensions\nmfimage\n")
    names = (path.relative_to(here / "site") for path in (here / "site").rglob("*.*"))
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    (here / "Dockerfile").write_text(f"FROM {step_image}\nCOPY site /opt/site\n")
    command = ["docker", "build", "--quiet", "--tag", tag, str(here)]
    subprocess.run(command, check=True, capture_output=True)
    flows.write(
        FLOW.format(
            decorators=f"@docker(image={tag!r})",
            body="import mfimage as m\n        self.file = m.__file__",
        )
    )
    flows.run()
    assert flows.tasks("start")[0]["file"].data == "/opt/site/mfimage/__init__.py"


def test_options(wrote: Callable[..., Flows], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("here")
    flows = wrote(
        """
        self.read = open("/inside/x").read()
        self.names = os.listdir("/sys/class/net")
        try:
            open("/etc/new", "w")
        except OSError as error:
            self.error = error.strerror
        open("/tmp/new", "w").close()
        self.limit = int(open("/sys/fs/cgroup/memory/memory.limit_in_bytes").read())
        self.ids = os.getuid(), os.getgid()
        """,
        f"volumes=['{tmp_path}/data:/inside:ro'], network='none', read_only=True, memory=200",
        "@resources(memory=300)",
    )
    flows.run()
    (task,) = flows.tasks("start")
    assert task["read"].data == "here"
    assert task["names"].data == ["lo"]
    assert task["error"].data == "Read-only file system"
    assert task["limit"].data == 300 * 2**20


def test_with_docker_runs_every_step(flows: Flows, step_image: str) -> None:
    flows.write(FLOW.format(decorators="", body="pass"))
    flows.run("run", "--with", f"docker:image={step_image},network=none")
    for step in ("start", "end"):
        assert metadata_of(flows.tasks(step)[0])["step.image"] == step_image


def test_resume_and_spin(wrote: Callable[..., Flows]) -> None:
    flows = wrote("self.x = os.path.exists('good') or 1/0")
    flows.run("run", fails=True)
    (flows.folder / "good").touch()
    flows.run("resume")
    assert metadata_of(flows.tasks("start")[0])["step.executor"] == "docker"
    wrote("self.x = 'spun'; print('in', os.environ['MFIMAGE_STEP_EXECUTOR'])")
    assert "in docker" in flows.run("spin", "start")


def test_a_step_on_kubernetes_is_left_alone(flows: Flows) -> None:
    flows.write(FLOW.format(decorators="@docker", body="pass"))
    printed = flows.run("run", "--with", "kubernetes", fails=True)
    assert "The @kubernetes decorator requires --datastore=s3" in printed, printed


def test_the_datastore_in_s3(wrote: Callable[..., Flows], bucket: Bucket) -> None:
    flows = wrote("self.x = 'in the bucket'; print('logged')", "network='host'")
    env = {**bucket.env, "METAFLOW_DATASTORE_SYSROOT_S3": f"{bucket.url}/flows"}
    flows.run("--datastore", "s3", "run", **env)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        (task,) = flows.tasks("start")
        assert metadata_of(task)["ds-type"] == "s3"
        assert metadata_of(task)["step.executor"] == "docker"
    assert any("/start/" in key for key in bucket.objects())
