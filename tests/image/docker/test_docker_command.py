"""The ``docker`` command: what it is called with, how it ends; a script stands in for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfimage.errors import BuildError, EngineError, OptionError
from mfimage.image.docker.builder import DockerBuilder
from mfimage.image.docker.command import DockerCommand
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.options import parse_cache
from mfimage.image.registry.reference import parse_tag
from tests.image.sample import make_sample

BUILDX = "github.com/docker/buildx v0.29.1 a32761"
NO_BUILDX = "docker: 'buildx' is not a docker command."


class Docker:
    """A script in place of ``docker``, and what it was called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.context = folder / "context"
        self.context.mkdir()
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")

    def install(self, *, buildx: str = BUILDX, version: str = "", build: str = "") -> None:
        """Write the script; ``build`` is Python that runs for a build."""
        path = self.folder / "bin" / "docker"
        path.write_text(f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
def write(option, text):
    for each in sys.argv:
        if each.startswith(option + "="):
            pathlib.Path(each.partition("=")[2]).write_text(text)
def say(text):
    print(text, file=sys.stderr, flush=True)
if sys.argv[1:] == ["buildx", "version"]:
    print({buildx!r})
    sys.exit("buildx" not in {buildx!r})
if sys.argv[1:] == ["--version"]:
    print({version!r})
    sys.exit()
here = pathlib.Path({str(self.folder)!r})
(here / "called.json").write_text(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))
write("--iidfile", "sha256:abc")
write("--metadata-file", json.dumps({{"containerimage.digest": "sha256:def"}}))
{build}
""")
        path.chmod(0o755)

    def called(self) -> tuple[list[str], dict[str, str], str]:
        return tuple(json.loads((self.folder / "called.json").read_text()))  # type: ignore[return-value]


@pytest.fixture
def docker(tmp_path, monkeypatch) -> Docker:
    return Docker(tmp_path, monkeypatch)


# Which command


def test_a_command_without_buildx_builds_if_it_is_old(docker):
    docker.install(buildx=NO_BUILDX, version="Docker version 20.10.24+dfsg1, build 297e128")
    assert DockerCommand.find().buildx is None


def test_a_new_command_needs_buildx(docker):
    docker.install(buildx=NO_BUILDX, version="Docker version 28.2.2, build e6534b4")
    with pytest.raises(EngineError, match=r"docker \(28\.2\.2\) cannot build: it has no") as e:
        DockerCommand.find()
    assert "docker-buildx-plugin" in e.value.hint
    assert "--builder oci" in e.value.hint


def test_podman_is_not_docker(docker):
    docker.install(buildx="buildah 1.33.7", version="podman version 4.9.3")
    with pytest.raises(EngineError, match=r"not Docker's own command.*'podman version 4\.9\.3'"):
        DockerCommand.find()


@pytest.mark.parametrize(
    ("shown", "version"),
    [
        (BUILDX, (0, 29)),
        ("github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3", (0, 13)),
        ("github.com/docker/buildx v0.20.1-desktop.2 8a7d", (0, 20)),
    ],
)
def test_buildx_says_its_version(docker, shown, version):
    docker.install(buildx=shown)
    assert DockerCommand.find().buildx == version


# What it is called with


def test_a_build_by_buildx(docker, tmp_path, monkeypatch):
    docker.install()
    monkeypatch.setenv("BUILDX_BUILDER", "mine")
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    cache = parse_cache("type=local,dest=cache", field="cache-to")
    names = DockerCommand.find().build(
        docker.context,
        tags=["a:1", "b:2"],
        platform="linux/arm64",
        no_cache=True,
        cache_from=[parse_cache("team/cache", field="f"), parse_cache("type=gha", field="f")],
        cache_to=cache,
    )
    assert names == ("sha256:abc", "sha256:def")
    arguments, environment, folder = docker.called()
    assert arguments[:4] == ["buildx", "build", "--load", "--progress=rawjson"]
    assert arguments[6:] == [
        "--tag=a:1", "--tag=b:2", "--platform=linux/arm64", "--no-cache",
        "--cache-from=team/cache:latest", "--cache-from=type=gha",
        "--cache-to=type=local,dest=cache",
        "--", str(docker.context),
    ]  # fmt: skip
    assert environment["BUILDX_BUILDER"] == "mine"
    assert environment["DOCKER_HOST"] == "tcp://10.0.0.1:2375"
    assert environment["DOCKER_BUILDKIT"] == "1"
    assert folder == str(Path.cwd()), "paths of caches are relative to the user's folder"
    for option in arguments[4:6]:
        assert not Path(option.partition("=")[2]).parent.exists(), "temporary files are gone"


def test_an_old_buildx_has_no_json(docker):
    docker.install(buildx="github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3")
    DockerCommand.find().build(docker.context)
    assert "--progress=plain" in docker.called()[0]


def test_a_build_without_buildx(docker):
    docker.install(buildx=NO_BUILDX, version="Docker version 20.10.24+dfsg1, build 297e128")
    command = DockerCommand.find()
    command.build(docker.context, cache_to=parse_cache("team/cache", field="cache-to"))
    arguments, environment, folder = docker.called()
    assert arguments[:2] == ["build", "--progress=plain"]
    assert arguments[3:] == ["--build-arg=BUILDKIT_INLINE_CACHE=1", "--", "context"]
    assert environment["DOCKER_BUILDKIT"] == "1"
    # It remembers a context by its path as written.
    assert folder == str(docker.folder)


def test_what_needs_buildx_is_refused_by_name(docker):
    docker.install(buildx=NO_BUILDX, version="Docker version 20.10.24+dfsg1, build 297e128")
    command = DockerCommand.find()
    cache = parse_cache("type=gha", field="cache-from")
    with pytest.raises(OptionError, match="cache-from: type=gha needs buildx") as raised:
        command.build(docker.context, cache_from=[cache])
    assert "--cache-from NAME[:TAG]" in raised.value.hint
    with pytest.raises(OptionError, match="cache-to: type=gha needs buildx"):
        command.build(docker.context, cache_to=cache)


def test_no_argument_carries_a_secret(docker):
    """Small ones go by the environment; large ones, as CA bundles, by private files."""
    docker.install(
        build="""
say(f"it is {os.environ['MFIMAGE_SECRET_0']} and {os.environ['MFIMAGE_SECRET_1']}")
for each in sys.argv:
    if "src=" in each:
        path = pathlib.Path(each.partition("src=")[2])
        state = [oct(p.stat().st_mode & 0o777) for p in (path, path.parent)]
        (here / "file.json").write_text(json.dumps([*state, len(path.read_bytes())]))
sys.exit(1)
"""
    )
    secrets = {
        "netrc": b"password hunter2-of-a-file",
        "UV_TOKEN": b"hunter2-of-a-variable",
        "ca": b"x" * 300_000,
        "pip.conf": b"hunter2\0",
    }
    with pytest.raises(BuildError, match=r"^it is \*\*\* and \*\*\*$"):
        DockerCommand.find().build(docker.context, secrets=secrets)
    arguments, environment, _ = docker.called()
    assert "hunter2" not in " ".join(arguments)
    assert "--secret=id=netrc,env=MFIMAGE_SECRET_0" in arguments
    assert environment["MFIMAGE_SECRET_1"] == "hunter2-of-a-variable"
    assert json.loads((docker.folder / "file.json").read_text()) == ["0o600", "0o700", 8]
    files = [Path(each.partition("src=")[2]) for each in arguments if "src=" in each]
    assert len(files) == 2
    assert not any(path.exists() for path in files), "they are gone"


# How it ends


def test_the_commands_own_error_is_shown(docker):
    docker.install(build="say('ERROR: no builder \"mine\" found')\nsys.exit(1)")
    with pytest.raises(BuildError, match=r'^no builder "mine" found$'):
        DockerCommand.find().build(docker.context)
    docker.install(build="sys.exit(3)")
    with pytest.raises(BuildError, match="ended with exit status 3"):
        DockerCommand.find().build(docker.context)


class Gone:
    """An engine that was there when the build began."""

    def alive(self) -> bool:
        return False


def test_an_engine_that_is_killed_is_one_clear_error(docker, tmp_path):
    said = "ERROR: failed to receive status: rpc error: code = Unavailable desc = EOF"
    docker.install(build=f"say('#1 [1/1] RUN sleep')\nsay({said!r})\nsys.exit(1)")
    sample = make_sample(tmp_path / "blobs")
    builder = DockerBuilder(
        Gone(), DockerCommand.find(), tags=(), secrets={}, no_cache=False,
        on_event=lambda _: None,
    )  # fmt: skip
    with pytest.raises(EngineError) as raised:
        builder.build(sample.plan(), sample.blobs.path)
    assert raised.value.message == "building the image: the Docker engine went away"
    assert "systemctl start docker" in raised.value.hint


def test_the_context_is_named_by_the_images_repositories(docker, tmp_path):
    """By that name the engine knows which files it has already."""
    docker.install()
    sample = make_sample(tmp_path / "blobs")
    found = []
    for tags in (["a/x:1"], ["a/x:2"], ["a/y:1"], [], []):
        builder = DockerBuilder(
            Known(), DockerCommand.find(), tags=[parse_tag(tag) for tag in tags], secrets={},
            no_cache=False, on_event=lambda _: None,
        )  # fmt: skip
        builder.build(sample.plan(), sample.blobs.path)
        context = Path(docker.called()[0][-1])
        assert not context.parent.exists(), "it is gone"
        found.append(context.name)
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4]


class Known:
    """An engine that has every image."""

    def inspect(self, name: str) -> ImageInfo:
        return ImageInfo(id=name)


SLOW = """
say('#1 [1/1] RUN sleep')
def stop(*_):
    (here / "stopped").touch()
    sys.exit(1)
signal.signal(signal.SIGINT, {handler})
(here / "pid").write_text(str(os.getpid()))
time.sleep(60)
"""
PROGRAM = """
import sys, tempfile, pathlib
from mfimage.image.docker.command import DockerCommand, ended_by_signals
tempfile.tempdir = sys.argv[2]
with ended_by_signals(), tempfile.TemporaryDirectory(prefix="context-"):
    DockerCommand.find().build(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_build_and_leaves_no_files(docker, number, code):
    docker.install(build=SLOW.format(handler="stop"))
    temporary = docker.folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(docker.context), str(temporary)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_for(docker.folder / "pid")
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == code
    assert (docker.folder / "stopped").exists(), "it was interrupted, not killed"
    assert list(temporary.iterdir()) == []


def test_a_build_that_ignores_an_interrupt_is_killed(docker, monkeypatch):
    monkeypatch.setattr("mfimage.image.docker.command._INTERRUPT_TIMEOUT", 0.2)
    docker.install(build=SLOW.format(handler="signal.SIG_IGN"))

    def interrupt(event) -> None:
        wait_for(docker.folder / "pid")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DockerCommand.find().build(docker.context, on_event=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((docker.folder / "pid").read_text()), 0)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
