"""Running an image without an engine: unpacked by umoci, in namespaces by runc."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mfimage.errors import EngineError
from mfimage.image.checks.report import Failed
from mfimage.image.checks.runner import LOG_LINES, Address, ContainerOptions, wait_for_end
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.run import image_at
from mfimage.image.oci.outputs import write_images
from mfimage.image.registry.location import OCI, Location
from mfimage.image.registry.reference import parse_tag
from mfimage.masking import Masker

_RUNTIME, _UNPACKER = "runc", "umoci"
_TAG = "image"
_LOG = "log"
# What takes longer hangs; copying a large image may take its time.
_TIMEOUT = 600
# Where Debian has them is not always on PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
# As the Docker engine gives them to whoever asks for nothing.
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
        "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    )
]  # fmt: skip
_NAMES = ("/etc/resolv.conf", "/etc/hosts")
_FLAGS = ("nosuid", "nodev")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Programs that unpack and run an image: the paths of umoci and runc."""

    unpacker: str
    runtime: str


def find_tools() -> Tools | None:
    """Return the programs, if they are here."""
    runtime = shutil.which(_RUNTIME, path=_PATH)
    unpacker = shutil.which(_UNPACKER, path=_PATH)
    return Tools(unpacker=unpacker, runtime=runtime) if runtime and unpacker else None


class RuncRunner:
    """Runs an image that is unpacked; see `ImageRunner`.

    Its containers share the machine's network, but no files that they may write: what one leaves
    behind would stand in another's way.
    """

    name = "runc"
    own_network = False

    def __init__(self, runtime: str, folder: Path, info: ImageInfo) -> None:
        self.info = info
        self._folder = folder
        self._bundle = folder / "bundle"
        self._command = (runtime, "--root", str(folder / "state"))

    def read(self, path: str) -> bytes | None:
        """Return a file of the image; None if there is none."""
        root = (self._bundle / "rootfs").resolve()
        file = (root / path.lstrip("/")).resolve()
        # A link of the image's may point at a file of the machine's.
        return file.read_bytes() if file.is_relative_to(root) and file.is_file() else None

    @contextmanager
    def start(self, launch: ContainerOptions) -> Iterator[RuncContainer]:
        """Run a container until the block ends."""
        identity = f"mfimage-{uuid.uuid4().hex}"
        folder = self._folder / identity
        folder.mkdir()
        port = _free_port() if launch.port else None
        config = json.loads((self._bundle / "config.json").read_text())
        pristine = self._bundle / "rootfs"
        with _root(pristine, folder, read_only=launch.read_only) as root:
            document = _restrict(config, launch, root, port)
            (folder / "config.json").write_text(json.dumps(document))
            with self._running(folder, identity) as process:
                yield RuncContainer(self._command, identity, process, folder / _LOG, port)

    @contextmanager
    def _running(self, folder: Path, identity: str) -> Iterator[subprocess.Popen[bytes]]:
        with (folder / _LOG).open("wb") as out:
            # Of a session of its own: Ctrl-C is for us, who end it in order.
            process = subprocess.Popen(
                [*self._command, "run", "--bundle", str(folder), identity],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _run([*self._command, "delete", "--force", identity])
            try:
                process.wait(_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _root(pristine: Path, folder: Path, *, read_only: bool) -> Iterator[Path]:
    """Yield the image's files for one container, below ``folder`` unless it may only read."""
    if read_only:
        yield pristine
        return
    names = ("upper", "work", "rootfs")
    for name in names:
        (folder / name).mkdir()
    upper, work, root = (str(folder / name) for name in names)
    options = f"lowerdir={pristine},upperdir={upper},workdir={work}"
    mounted = _run(["mount", "-t", "overlay", "overlay", "-o", options, root]).returncode == 0
    if not mounted:  # not every file system can be the upper one
        _copy(pristine, Path(root))
    try:
        yield Path(root)
    finally:
        if mounted:
            _run(["umount", root])


def _copy(source: Path, target: Path) -> None:
    copied = _run(["cp", "--archive", "--reflink=auto", f"{source}/.", str(target)])
    if copied.returncode:
        last = copied.stdout.strip().rpartition("\n")[2]
        raise EngineError(f"the image's files cannot be copied: {last}")


class RuncContainer:
    """A container of runc's; see `Container`."""

    def __init__(
        self,
        command: Sequence[str],
        identity: str,
        process: subprocess.Popen[bytes],
        log: Path,
        port: int | None,
    ) -> None:
        self._command = command
        self._id = identity
        self._process = process
        self._log = log
        self._port = port
        self._redact = Masker([])

    def addresses(self) -> Sequence[Address]:
        """Return where its port is."""
        return [("127.0.0.1", self._port)] if self._port else []

    def exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.poll()

    def log(self, lines: int | None = LOG_LINES) -> str:
        """Return the last lines of stdout and stderr, or all of them."""
        text = self._log.read_text(errors="replace").splitlines(keepends=True)
        return self._redact("".join(text if lines is None else text[-lines:]))

    def execute(self, command: Sequence[str]) -> str:
        """Run a command in it; return what it prints."""
        return _run([*self._command, "exec", self._id, *command]).stdout

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""
        done = _run([*self._command, "kill", self._id, "TERM"])
        if done.returncode and self.exit_code() is None:
            raise Failed(f"SIGTERM cannot be sent to it: {done.stdout.strip()}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_TIMEOUT,
        check=False,
    )


def _restrict(
    config: dict[str, Any], launch: ContainerOptions, rootfs: Path, port: int | None
) -> Mapping[str, Any]:
    """Turn umoci's configuration into the one that a container is started by."""
    process = config["process"]
    process["terminal"] = False
    process["noNewPrivileges"] = launch.no_new_privileges
    if launch.entrypoint:
        process["args"] = list(launch.entrypoint)
    given = dict(launch.env)
    if port is not None:
        # The network is the machine's, where the image's own port may be taken.
        given["PORT"] = str(port)
    kept = [pair for pair in process["env"] if pair.partition("=")[0] not in given]
    process["env"] = kept + [f"{name}={value}" for name, value in given.items()]
    if launch.user:
        uid, _, gid = launch.user.partition(":")
        process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    has = [] if launch.no_capabilities else _CAPABILITIES
    # As in an engine, only root keeps them when it starts a program.
    held = has if process["user"]["uid"] == 0 else []
    process["capabilities"] = {"bounding": has, "effective": held, "permitted": held}
    config["root"] = {"path": str(rootfs), "readonly": launch.read_only}
    if launch.read_only:
        options = [*_FLAGS, "noexec", "mode=1777"]
        mount = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options}  # noqa: S108
        config["mounts"].append(mount)
    for path in _NAMES:
        if Path(path).is_file() and (rootfs / path.lstrip("/")).is_file():
            config["mounts"].append(_readable(path))
    linux = config["linux"]
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "network"]
    return config


def _readable(path: str) -> dict[str, Any]:
    options = ["bind", "ro", *_FLAGS]
    return {"destination": path, "type": "bind", "source": path, "options": options}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def open_runc(location: Location, tools: Tools) -> Iterator[RuncRunner]:
    """Unpack an image until the block ends.

    Raises
    ------
    EngineError
        If it cannot be unpacked, or nothing can be run here.
    BuildError
        If there is no such image.
    """
    with TemporaryDirectory(prefix="mfimage-") as text, image_at(location) as (image, info):
        folder = Path(text)
        layout, bundle = folder / "layout", folder / "bundle"
        # umoci finds images by tag, and wants no other kind of place.
        write_images([image], Location(kind=OCI, path=layout), [parse_tag(f"mfimage:{_TAG}")])
        rootless = () if os.geteuid() == 0 else ("--rootless",)
        command = [tools.unpacker, "unpack", *rootless, "--image", f"{layout}:{_TAG}", str(bundle)]
        done = _run(command)
        if done.returncode:
            last = done.stdout.strip().rpartition("\n")[2]
            raise EngineError(f"{location}: umoci cannot unpack it: {last}")
        runner = RuncRunner(tools.runtime, folder, info)
        _refuse_without_namespaces(runner)
        yield runner


def _refuse_without_namespaces(runner: RuncRunner) -> None:
    """Tell what this machine does not allow from what is wrong with an image."""
    with runner.start(ContainerOptions(entrypoint=("/bin/true",), read_only=True)) as container:
        code = wait_for_end(container, _TIMEOUT)
        said = container.log().strip().rpartition("\n")[2]
    if code:
        raise EngineError(
            f"{runner.name} cannot run containers here: {said}",
            hint="run as root, where namespaces may be made, or with a Docker engine",
        )
