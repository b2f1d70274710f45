"""The ``docker`` command: finding one that builds by BuildKit, and running its builds."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mfimage.errors import BuildError, EngineError, OptionError
from mfimage.image.builder import OnEvent
from mfimage.image.docker.progress import BuildProgress
from mfimage.image.plan.options import BuildxCache
from mfimage.image.registry.reference import Reference
from mfimage.masking import Masker

# The client from which on only buildx builds by BuildKit, and the buildx that writes JSON.
_NEEDS_BUILDX = 23
_RAW_JSON = (0, 14)
_INTERRUPT_TIMEOUT = 10.0
_LONGEST_STEP_NAME = 300
# Linux takes 128 KiB with the name.
_LARGEST_VARIABLE = 100_000
_INSTEAD = (
    "or use --builder oci, which needs no Docker: it pushes to registries and writes oci:DIR, "
    "oci-archive:FILE and docker-archive:FILE, but installs no Debian packages"
)
_INSTALL_BUILDX = "install buildx (the package docker-buildx-plugin or docker-buildx)"
_HINTS = {
    "no space left on device": "free space on the engine: `docker system df`, then "
    "`docker system prune`",
    "exit code: 137": "the step was killed: the engine has too little memory for it",
    "failed to resolve source metadata": "check the base image's name, and `docker login` to its "
    "registry; a builder other than the engine's own sees no image that only the engine has: "
    "BUILDX_BUILDER=default",
    "pull access denied": "check the base image's name, and `docker login` to its registry",
    "401 unauthorized": "`docker login` to the base image's registry",
    "cache export is not supported": "use a builder that writes caches "
    "(`docker buildx create --use`), or turn on the engine's containerd image store",
    "exec format error": "the engine cannot run this platform's programs: install emulation "
    "(`docker run --privileged --rm tonistiigi/binfmt --install all`), or build on that platform",
}


@dataclass(frozen=True, kw_only=True)
class DockerCommand:
    """The ``docker`` command of this machine, which builds by BuildKit."""

    path: str
    # The version of the plugin; without one the command itself builds.
    buildx: tuple[int, int] | None

    @classmethod
    def find(cls) -> DockerCommand:
        """Find the command on PATH."""
        path = shutil.which("docker")
        if path is None:
            raise EngineError(
                "there is no `docker` command on PATH, which builds the image",
                hint=f"install Docker's command line, {_INSTEAD}",
            )
        plugin = re.search(r"buildx v?(\d+)\.(\d+)", _output(path, "buildx", "version"))
        if plugin:
            return cls(path=path, buildx=(int(plugin[1]), int(plugin[2])))
        shown = _output(path, "--version")
        version = re.match(r"Docker version (\d+)\.\d+[^,\s]*", shown)
        if version is None:
            raise EngineError(
                f"{path} is not Docker's own command: it calls itself {shown.strip()[:80]!r}",
                hint=f"put Docker's first on PATH, {_INSTEAD}",
            )
        if int(version[1]) >= _NEEDS_BUILDX:
            name = version[0].removeprefix("Docker version ")
            raise EngineError(
                f"{path} ({name}) cannot build: it has no buildx",
                hint=f"{_INSTALL_BUILDX}, {_INSTEAD}",
            )
        return cls(path=path, buildx=None)

    def build(
        self,
        context: Path,
        *,
        tags: Sequence[str] = (),
        platform: str | None = None,
        secrets: Mapping[str, bytes] | None = None,
        no_cache: bool = False,
        cache_from: Sequence[Reference | BuildxCache] = (),
        cache_to: Reference | BuildxCache | None = None,
        on_event: OnEvent = lambda _: None,
    ) -> tuple[str, ...]:
        """Build the Dockerfile of a folder."""
        # The engine fetches what has changed since the last build of a folder of this name. Secrets
        # are for ``RUN --mount=type=secret,id=...``. A `Reference` as `cache_to` is an inline
        # cache: the image is to be pushed under that name. Returns the IDs and digests by which the
        # engine may know the image, likeliest first.
        for field, caches in (("cache-from", cache_from), ("cache-to", [cache_to])):
            for cache in caches:
                if self.buildx is None and isinstance(cache, BuildxCache):
                    raise OptionError(
                        f"{field}: {cache} needs buildx, which {self.path} does not have",
                        hint=f"{_INSTALL_BUILDX}, or name an image in a registry: "
                        f"--{field} NAME[:TAG]",
                    )
        secrets = secrets or {}
        progress = BuildProgress(Masker(secrets.values()))
        # DOCKER_HOST, contexts, DOCKER_CONFIG, BUILDX_BUILDER and what caches need, unchanged.
        # Attestations hold times: with them, equal images would have other digests each time.
        environment = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", **os.environ, "DOCKER_BUILDKIT": "1"}
        with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
            ids, metadata = Path(folder, "id"), Path(folder, "metadata.json")
            arguments = [f"--iidfile={ids}"]
            if self.buildx is None:
                arguments = ["build", "--progress=plain", *arguments]
            else:
                shown = "rawjson" if self.buildx >= _RAW_JSON else "plain"
                arguments = ["buildx", "build", "--load", f"--progress={shown}", *arguments]
                arguments.append(f"--metadata-file={metadata}")
            arguments += [f"--tag={tag}" for tag in tags]
            arguments += [f"--platform={platform}"] if platform else []
            arguments += _hand_over(secrets, environment, Path(folder))
            arguments += ["--no-cache"] if no_cache else []
            arguments += [f"--cache-from={cache}" for cache in cache_from]
            if isinstance(cache_to, BuildxCache):
                arguments.append(f"--cache-to={cache_to}")
            elif cache_to is not None:
                arguments.append("--build-arg=BUILDKIT_INLINE_CACHE=1")
            # The client without buildx remembers a context by its path as written, which then must
            # not have the temporary folder in it; buildx by its last part.
            where, cwd = (str(context), None) if self.buildx else (context.name, context.parent)
            command = [self.path, *arguments, "--", where]
            if status := _run(command, environment, cwd, progress, on_event):
                raise _build_error(progress, status)
            names = [ids.read_text().strip()]
            with contextlib.suppress(FileNotFoundError):
                names.append(json.loads(metadata.read_text()).get("containerimage.digest"))
            return tuple(filter(None, names))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _hand_over(
    secrets: Mapping[str, bytes], environment: dict[str, str], folder: Path
) -> Iterator[str]:
    """Put secrets where the command finds them; yield the arguments that name the places."""
    for number, (name, value) in enumerate(secrets.items()):
        if len(value) <= _LARGEST_VARIABLE and b"\0" not in value:
            variable = f"MFIMAGE_SECRET_{number}"
            environment[variable] = os.fsdecode(value)
            source = f"env={variable}"
        else:
            path = folder / f"secret-{number}"
            path.touch(mode=0o600)
            path.write_bytes(value)
            source = f"src={path}"
        # A line of CSV.
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([f"id={name}", source])
        yield f"--secret={text.getvalue()}"


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path | None,
    progress: BuildProgress,
    on_event: OnEvent,
) -> int:
    """Run a build to its end; return the exit status."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A session of its own, so that its plugins end with it.
        start_new_session=True,
    ) as process:
        try:
            for line in process.stderr or ():
                for event in progress.feed(line):
                    on_event(event)
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a build, as Ctrl-C does; kill it if it goes on."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_INTERRUPT_TIMEOUT)
            return


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, which end this process, end the build and its files as well."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    # Only the main thread may, and something else may handle them.
    main = threading.current_thread() is threading.main_thread()
    both = (signal.SIGTERM, signal.SIGHUP) if main else ()
    numbers = [each for each in both if signal.getsignal(each) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _build_error(progress: BuildProgress, status: int) -> BuildError:
    message = progress.message() or f"`docker build` ended with exit status {status}"
    text, failure = message, progress.failure()
    if failure is not None:
        step = failure.step[:_LONGEST_STEP_NAME]
        text = "\n".join([f"{step}: {failure.error}", *(f"  | {line}" for line in failure.log)])
    everything = f"{message}\n{text}".lower()
    hint = next((hint for sign, hint in _HINTS.items() if sign in everything), None)
    return BuildError(text, hint=hint)
