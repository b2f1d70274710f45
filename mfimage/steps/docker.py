"""Runs a step's commands in containers, by the ``docker`` command line.

Contexts, ``DOCKER_HOST``, credential helpers and proxies work as they do for ``docker run``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.steps.executor import Job, Refused, StepCommand, Unavailable, exit_status
from mfimage.steps.sandbox import ARGUMENTS as SANDBOX
from mfimage.steps.sandbox import CARDS, Sandbox
from mfimage.steps.sandbox import variables as sandboxed_variables

# Where the extension is in a container: mounted, or part of the image.
EXTENSION = "/opt/mfimage"
# The variables of an attempt that count inside: Metaflow's, credentials and proxies. Variables
# such as PATH, HOME and VIRTUAL_ENV belong to the machine.
PREFIXES = ("METAFLOW_", "MFIMAGE_", "AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "OTEL_")
NAMES = {
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("PYTHONUNBUFFERED", "TZ", "TRACEPARENT", "TRACESTATE"),
}
# Variables whose values are files or folders: those are mounted.
FILES = (
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("METAFLOW_HOME", "AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_FEDERATED_TOKEN_FILE"),
)
# Options of Metaflow's command line whose values are folders or files.
WRITTEN = ("--datastore-root", "--orig-flow-datastore")
READ = ("--local-config-file", "--artifacts-module")
# Mounted at the same path, these would hide the image's own.
SYSTEM = {"/", "/bin", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sbin"} | {
    "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/var",
}  # fmt: skip
# How long a container may take to end when it is told to.
PATIENCE = 15.0
GONE = re.compile(
    r"Cannot connect to the Docker daemon|error during connect|error waiting for container|"
    r"connection (refused|reset)|\bEOF\b|i/o timeout|no space left on device|"
    r"context deadline exceeded|is shutting down",
    re.IGNORECASE,
)

# What to do about a refusal, by its words.
HINTS = {
    '"python": executable file not found': "the image needs python on its PATH",
    "could not select device driver": "the engine has no GPUs: install NVIDIA's container toolkit",
    "bind source path does not exist": "the engine must run on this machine: the flow is mounted",
    "are not shared from the host": "share the flow's folder in Docker's settings",
    "Range of CPUs": "lower cpu=",
    "Minimum memory limit": "raise memory=, which is in MB",
    "invalid reference format": "check image=",
    "permission denied while trying to connect": "may this user use the engine? (group docker)",
}


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder or file of this machine, at the same path in a container or at another.

    Attributes
    ----------
    source : str
        Absolute.
    target : str, optional
        Where it is in the container; the same path if None.
    read_only : bool
        Whether the container may only read it.
    """

    source: str
    target: str | None = None
    read_only: bool = False

    @property
    def at(self) -> str:
        """Where it is in the container."""
        return self.target or self.source

    def argument(self) -> str:
        """Return the value for ``docker run --mount``."""
        parts = ["type=bind", f"source={self.source}", f"target={self.at}"]
        # A comma would begin another part; the command line reads CSV.
        quoted = [f'"{part}"' if "," in part else part for part in parts]
        return ",".join([*quoted, *(["readonly"] if self.read_only else [])])


@dataclass(frozen=True, kw_only=True)
class DockerExecutor:
    """Runs each command in a container of its own, and removes the container.

    Attributes
    ----------
    image : str
        A reference; pulled if the engine does not have it.
    network : str, optional
        As ``docker run --network`` has it.
    memory, shared_memory : int, optional
        Limits in MB; with `memory` there is no swap.
    cpu : float, optional
        How many cores it may use.
    gpus : str, optional
        As ``docker run --gpus`` has it, such as ``all``.
    volumes : sequence of str
        As ``docker run --volume`` has them.
    user : str, optional
        ``uid[:gid]``; the caller if None, so that the files it writes are the caller's.
    read_only : bool
        Whether the image's files cannot be changed; ``/tmp`` is then in memory.
    runtime : str, optional
        One of the engine's runtimes, such as ``runsc``.
    mounts : sequence of mapping
        Keyword arguments of `Mount`, beside what the command itself needs.
    names : sequence of str
        Variables of the attempt to pass on beside Metaflow's own, credentials and proxies.
    variables : mapping
        Further variables. No secrets: they stand on the command line.
    path : sequence of str
        Folders for ``sys.path``, behind the image's own.
    arguments : sequence of str
        Further arguments of ``docker run``.
    container_env, remote_env : mapping
        Variables for all, and for the command alone; ``${localEnv:NAME}`` in them is filled in
        from the attempt's environment when it starts.
    before : sequence
        ``[folder, command]`` of each command to run first, in the same container.
    sandbox : str, optional
        A private folder: commands run without a network, privileges and credentials, and their
        results are checked there (`mfimage.steps.sandbox`).
    """

    image: str
    network: str | None = None
    memory: int | None = None
    shared_memory: int | None = None
    cpu: float | None = None
    gpus: str | None = None
    volumes: Sequence[str] = ()
    user: str | None = None
    read_only: bool = False
    runtime: str | None = None
    mounts: Sequence[Mapping[str, Any]] = ()
    names: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    path: Sequence[str] = ()
    arguments: Sequence[str] = ()
    container_env: Mapping[str, str] = field(default_factory=dict)
    remote_env: Mapping[str, str] = field(default_factory=dict)
    before: Sequence[Sequence[Any]] = ()
    sandbox: str | None = None

    def start(self, command: StepCommand) -> Job:
        """Start a container."""
        name = container_name(command)
        command = dataclasses.replace(
            command, env={**command.env, **dict(self._settings(command.env))}
        )
        if self.sandbox is None:
            return DockerJob.start(self.run_arguments(command, name=name), command, name=name)
        box = Sandbox.make(command, self.sandbox)
        arguments = self.run_arguments(command, name=name, box=box)
        return SandboxedJob(DockerJob.start(arguments, command, name=name), box)

    def _settings(self, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Yield variables under names that mean nothing to ``docker`` itself."""
        for prefix, values in (("SET", self.container_env), ("REMOTE", self.remote_env)):
            for name, value in values.items():
                yield f"MFIMAGE_{prefix}_{name}", fill_local(value, env)

    def run_arguments(
        self, command: StepCommand, *, name: str, box: Sandbox | None = None
    ) -> list[str]:
        """Return the command line for one container that runs a command."""
        return [
            *self.container(command, name=name, box=box),
            *("-I", f"{EXTENSION}/mfimage/steps/inside.py"),
            *(part for each in (*self.path, EXTENSION) for part in ("--path", each)),
            *(part for each in self.before for part in ("--before", json.dumps(each))),
            *("--", "python", *command.argv[1:]),
        ]

    def container(
        self, command: StepCommand, *, name: str, box: Sandbox | None = None
    ) -> list[str]:
        """Return the command line for a container that suits a command, up to Python's options."""
        passed = environment(command, self.names)
        further = [Mount(**each) for each in self.mounts]
        if box:
            kept = sandboxed_variables(passed)
            passed = {k: v for k, v in passed.items() if k in kept or k in self.names}
            passed.pop("METAFLOW_CARD_LOCALROOT", None)
            further += [Mount(**each) for each in box.mounts()]
        variables = {"MFIMAGE_STEP_EXECUTOR": "docker", "MFIMAGE_STEP_IMAGE": self.image}
        if not self.user:
            variables["HOME"] = "/tmp"  # noqa: S108 - the image may know no home for the caller
        variables |= self.variables
        variables = {k: v for k, v in variables.items() if k not in passed}
        if box:
            variables["METAFLOW_CARD_LOCALROOT"] = str(box.root / CARDS)
        mounts = needed_mounts(command, further, sandbox=bool(box))
        return [
            *("docker", "run", "--rm", "--interactive", "--sig-proxy=false"),
            *("--log-driver", "none"),  # Metaflow keeps the output
            *("--name", name),
            *("--label", f"io.mfimage.task={command.pathspec}"),
            *("--label", f"io.mfimage.attempt={command.attempt}"),
            *("--user", self.user or f"{os.getuid()}:{os.getgid()}"),
            *("--workdir", command.cwd),
            *self._options(),
            *(SANDBOX if box else ()),
            *self.arguments,
            *(part for each in mounts for part in ("--mount", each.argument())),
            # Names alone: the values may be secrets, and other users can read command lines.
            *(part for each in sorted(passed) for part in ("--env", each)),
            *(
                part
                for k, v in variables.items()
                if k not in passed
                for part in ("--env", f"{k}={v}")
            ),
            *("--entrypoint", "python", self.image),
        ]

    def _options(self) -> Iterator[str]:
        if self.network:
            yield from ("--network", self.network)
        if self.memory:
            yield from ("--memory", f"{self.memory}m", "--memory-swap", f"{self.memory}m")
        if self.shared_memory:
            yield from ("--shm-size", f"{self.shared_memory}m")
        if self.cpu:
            yield from ("--cpus", f"{self.cpu:g}")
        if self.gpus:
            yield from ("--gpus", self.gpus)
        if self.read_only or self.sandbox:
            yield from ("--read-only", "--tmpfs", "/tmp:mode=1777")  # noqa: S108
        if self.runtime:
            yield from ("--runtime", self.runtime)
        for volume in self.volumes:
            yield from ("--volume", volume)


class SandboxedJob:
    """A container's job whose results are checked, and then kept, when it has ended."""

    def __init__(self, job: DockerJob, box: Sandbox) -> None:
        self._job = job
        self._box = box
        self.output = job.output
        self.kill = job.kill

    def wait(self) -> int:
        """Return the exit status of what ran in the container."""
        try:
            status = self._job.wait()
            self._box.collect()
            return status
        finally:
            self._box.remove()


class DockerJob:
    """A ``docker run`` whose container ends when its stdin is closed."""

    def __init__(self, process: subprocess.Popen[bytes], *, name: str) -> None:
        self._process = process
        self._name = name
        self._tail = b""
        self._killed = False

    @classmethod
    def start(cls, arguments: Sequence[str], command: StepCommand, *, name: str) -> DockerJob:
        """Start ``docker run`` for a command."""
        try:
            process = subprocess.Popen(
                arguments,
                env=dict(command.env),
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is for the launcher
            )
        except FileNotFoundError:
            raise Refused(
                "the command docker is not on PATH",
                hint="install Docker's command line, or run the flow without @docker",
            ) from None
        return cls(process, name=name)

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield its stderr, which has Docker's own messages; its stdout is this process's."""
        assert self._process.stderr
        while chunk := os.read(self._process.stderr.fileno(), 65536):
            self._tail = (self._tail + chunk)[-8192:]
            yield 2, chunk

    def wait(self) -> int:
        """Return the exit status of what ran in the container."""
        status = exit_status(self._process.wait())
        if not self._killed:
            check(status, self._tail.decode(errors="replace"))
        return status

    def kill(self) -> None:
        """Close its stdin; remove the container if that does not end it."""
        if self._killed:
            return
        self._killed = True
        assert self._process.stdin
        self._process.stdin.close()
        timer = threading.Timer(PATIENCE, self._remove)
        timer.daemon = True
        timer.start()

    def _remove(self) -> None:
        remove = ["docker", "rm", "--force", self._name]
        subprocess.run(remove, capture_output=True, check=False)
        self._process.kill()


def container_name(command: StepCommand) -> str:
    """Return a name that says which task a container runs, and is never taken."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{command.pathspec}/{command.attempt}")
    return f"mfimage-{name}-{secrets.token_hex(3)}"


def environment(command: StepCommand, names: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of an attempt that count inside of a container."""
    return {
        name: value
        for name, value in command.env.items()
        if name.startswith(PREFIXES) or name in NAMES or name in names
    }


def fill_local(text: str, env: Mapping[str, str]) -> str:
    """Replace ``${localEnv:NAME:default}``."""

    def value(found: re.Match[str]) -> str:
        name, _, default = found[1].partition(":")
        return env.get(name, default)

    return re.sub(r"\$\{(?:localEnv|env):([^}]*)\}", value, text)


def needed_mounts(
    command: StepCommand, further: Sequence[Mount] = (), *, sandbox: bool = False
) -> list[Mount]:
    """Return what a command reads and writes, each folder once, parents first.

    In a sandbox it only reads, and the datastore's place is among the further ones.
    """
    code = [command.cwd, str(Path(command.cwd, command.argv[1]).parent)]
    for each in code:
        if each in SYSTEM:
            raise Refused(
                f"the folder {each} cannot be mounted: it would hide the image's own",
                hint="run the flow in its project's folder",
            )
    read = _values(command.argv, READ)
    if not sandbox:
        code += _values(command.argv, WRITTEN)
        read += [command.env.get(name, "") for name in FILES]
    mounts = [
        *(Mount(source=each, read_only=sandbox) for each in code),
        *(Mount(source=each, read_only=True) for each in read),
        *further,
    ]
    chosen: list[Mount] = []
    # Parents first, and writable before read-only: a later one may be part of an earlier one.
    for mount in sorted(mounts, key=lambda each: (each.at, each.read_only)):
        covered = any(
            Path(mount.at).is_relative_to(each.at)
            and mount.source == str(Path(each.source, Path(mount.at).relative_to(each.at)))
            and not (mount.read_only is False and each.read_only)
            for each in chosen
        )
        taken = any(mount.at == each.at for each in chosen)
        there = mount.source.startswith("/") and Path(mount.source).exists()
        if there and not (covered or taken):
            chosen.append(mount)
    return chosen


def _values(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the absolute paths among the values of options, such as ``local@/flows/.metaflow``."""
    values = (argv[at + 1] for at, each in enumerate(argv[:-1]) if each in options)
    paths = (value.partition("@")[2] or value for value in values)
    return [path for path in paths if path.startswith("/")]


def check(status: int, stderr: str) -> None:
    """Raise what ``docker run`` itself failed with, if it was not the command in the container.

    Raises
    ------
    Unavailable
        If the engine, or the image, cannot be reached.
    Refused
        If the engine does not accept what was asked for.
    """
    # 125 is the status of docker run itself, 126 and 127 those of a command that cannot start. A
    # command may exit so as well, but then the last words are its own.
    said = re.findall(r"^docker: (.+)", stderr, re.MULTILINE)
    # Logged when the connection breaks; after a refusal as well, by chance.
    said = said or re.findall(r'^time=.* level=error msg="(.+)"', stderr, re.MULTILINE)
    if status not in (125, 126, 127) or not said:
        return
    message = said[-1].removeprefix("Error response from daemon: ")
    if "Unable to find image" in stderr and "Status: Downloaded" not in stderr:
        raise Unavailable(
            f"the image cannot be pulled: {message}",
            hint="check image=, that `docker pull` finds it, and `docker login`",
        )
    if GONE.search(message):
        raise Unavailable(
            f"the Docker engine is not available: {message}",
            hint="`docker version` shows whether the engine runs",
        )
    hint = next((hint for part, hint in HINTS.items() if part in message), None)
    raise Refused(f"docker run: {message}", hint=hint or "check the options of @docker")
