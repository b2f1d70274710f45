"""The builder that runs ``docker build`` on the context that ``mfimage render`` writes."""

from __future__ import annotations

import contextlib
import csv
import hashlib
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
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mfimage.errors import BuildError, EngineError, OptionError
from mfimage.image.base_image import BaseImage
from mfimage.image.build_secrets import Secret, read_secrets
from mfimage.image.builder import DOCKER, BuildEvent, BuiltImage, BuiltLayer, OnEvent
from mfimage.image.context import write_context
from mfimage.image.docker.engine import Engine, engine_gone
from mfimage.image.docker.progress import BuildProgress
from mfimage.image.image_info import HistoryEntry, ImageInfo
from mfimage.image.layer_files import BlobPath, artifact_folder
from mfimage.image.location import Location
from mfimage.image.options import BuildxCache
from mfimage.image.plan import ImagePlan
from mfimage.image.redaction import Redactor
from mfimage.image.reference import Reference
from mfimage.package.cache import cache_folder
from mfimage.runtime.layout import VENV

_DOING = "building the image"
# What history says of steps that make a layer.
_LAYERED = ("RUN", "COPY", "ADD", "WORKDIR")
# The client from which on only buildx builds by BuildKit, and the buildx that writes JSON.
_NEEDS_BUILDX = 23
_RAW_JSON = (0, 14)
_INTERRUPT_TIMEOUT = 10.0
_LONGEST_STEP_NAME = 300
_INSTEAD = (
    "or use --builder oci, which needs no Docker: it pushes to registries and writes oci:DIR, "
    "oci-archive:FILE and docker-archive:FILE, but installs no Debian packages"
)
_INSTALL_BUILDX = "install buildx (the package docker-buildx-plugin or docker-buildx)"
_HINTS = {
    "no space left on device": "free space on the engine: `docker system df`, then "
    "`docker system prune`",
    "exit code: 137": "the step was killed: the engine has too little memory for it",
    "pull access denied": "check the base image's name, and `docker login` to its registry",
    "401 unauthorized": "`docker login` to the base image's registry",
    "failed to resolve source metadata": "check the base image's name, and `docker login` to its "
    "registry; a builder other than the engine's own sees no image that only the engine has: "
    "BUILDX_BUILDER=default",
    "exec format error": "the engine cannot run this platform's programs: install emulation "
    "(`docker run --privileged --rm tonistiigi/binfmt --install all`), or build on that platform",
}


@dataclass(frozen=True, kw_only=True)
class DockerCommand:
    """The ``docker`` command of this machine, which builds by BuildKit.

    It is run with this process's environment: DOCKER_HOST, contexts, DOCKER_CONFIG,
    BUILDX_BUILDER and what caches need reach it unchanged.

    Attributes
    ----------
    path : str
        Where it is.
    buildx : tuple of int, or None
        The version of its buildx plugin; None without one, where the command itself builds.
    """

    path: str
    buildx: tuple[int, int] | None

    @classmethod
    def find(cls) -> DockerCommand:
        """Find the command on PATH.

        Raises
        ------
        EngineError
            If there is none, or it cannot build by BuildKit.
        """
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
        secrets: Sequence[Secret] = (),
        no_cache: bool = False,
        cache_from: Sequence[Reference | BuildxCache] = (),
        cache_to: Reference | BuildxCache | None = None,
        on_event: OnEvent = lambda _: None,
    ) -> tuple[str, ...]:
        """Build the Dockerfile of a folder.

        Parameters
        ----------
        context : Path
            The folder. The engine fetches what has changed since the last build of a folder of
            this name.
        tags : sequence of str
            What to tag the image with.
        platform : str, optional
            As ``linux/arm64``; the engine's own by default.
        secrets : sequence of Secret
            For ``RUN --mount=type=secret,id=...``. The command reads them where they are.
        no_cache : bool
            Run every step anew.
        cache_from, cache_to : Reference or BuildxCache
            Caches. An image's is an inline one: `cache_to` writes it into the image, which is to
            be pushed under that name.
        on_event : callable
            Called in this thread with each `BuildEvent` as it happens.

        Returns
        -------
        tuple of str
            The image's IDs and digests by which the engine may know it, likeliest first.

        Raises
        ------
        OptionError
            If it cannot be done without buildx, or a secret cannot be read.
        BuildError
            If a step fails: names the step, ends with the last lines of its log.
        """
        self._check_caches(cache_from, cache_to)
        progress = BuildProgress(Redactor(read_secrets(secrets).values()))
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
            arguments += [f"--secret={_described(secret)}" for secret in secrets]
            arguments += ["--no-cache"] if no_cache else []
            arguments += [f"--cache-from={cache}" for cache in cache_from]
            if isinstance(cache_to, BuildxCache):
                arguments.append(f"--cache-to={cache_to}")
            elif cache_to is not None:
                arguments.append("--build-arg=BUILDKIT_INLINE_CACHE=1")
            # The client without buildx remembers a context by its path as written, which then must
            # not have the temporary folder in it; buildx by its last part.
            where = [str(context)] if self.buildx else [context.name]
            cwd = None if self.buildx else context.parent
            command = [self.path, *arguments, "--", *where]
            status = _run(command, cwd, progress, on_event)
            if status:
                raise _build_error(progress, status)
            return tuple(_built(ids, metadata))

    def _check_caches(
        self,
        cache_from: Sequence[Reference | BuildxCache],
        cache_to: Reference | BuildxCache | None,
    ) -> None:
        """Refuse what only buildx does."""
        given = [("cache-from", cache) for cache in cache_from]
        given += [("cache-to", cache_to)] if cache_to else []
        for field, cache in given:
            if self.buildx is None and isinstance(cache, BuildxCache):
                raise OptionError(
                    f"{field}: {cache} needs buildx, which {self.path} does not have",
                    hint=f"{_INSTALL_BUILDX}, or name an image in a registry: --{field} NAME[:TAG]",
                )


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout


def _described(secret: Secret) -> str:
    """Write where a secret is, as ``--secret`` takes it: a line of CSV."""
    source = (
        f"env={secret.variable}"
        if secret.variable
        else f"src={Path(secret.source or '').absolute()}"
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([f"id={secret.id}", source])
    return text.getvalue()


def _run(
    command: Sequence[str], cwd: Path | None, progress: BuildProgress, on_event: OnEvent
) -> int:
    """Run a build to its end; return the exit status."""
    # Attestations hold times: with them, equal images would have other digests each time.
    environment = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", **os.environ, "DOCKER_BUILDKIT": "1"}
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
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, which end this process, end the build and its files as well."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if _is_default(each)]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _is_default(number: signal.Signals) -> bool:
    """Return whether nothing else handles a signal; only the main thread may."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) is signal.SIG_DFL


def _built(ids: Path, metadata: Path) -> Iterator[str]:
    yield ids.read_text().strip()
    with contextlib.suppress(FileNotFoundError):
        if digest := json.loads(metadata.read_text()).get("containerimage.digest"):
            yield digest


def _build_error(progress: BuildProgress, status: int) -> BuildError:
    message = progress.message() or f"`docker build` ended with exit status {status}"
    text, failure = message, progress.failure()
    if failure is not None:
        step = failure.step[:_LONGEST_STEP_NAME]
        text = "\n".join([f"{step}: {failure.error}", *(f"  | {line}" for line in failure.log)])
    everything = f"{message}\n{text}".lower()
    hint = next((hint for sign, hint in _HINTS.items() if sign in everything), None)
    return BuildError(text, hint=hint)


class DockerBuilder:
    """Builds images by ``docker build``.

    Parameters
    ----------
    engine : Engine
        Where images end up; `close` closes it.
    command : DockerCommand
        What builds them.
    tags : sequence of Reference
        What to call images.
    secrets : sequence of Secret
        Credentials for the dependency step.
    no_cache : bool
        Run every step anew.
    on_event : callable
        Called with every step.
    cache_from : sequence of Reference or BuildxCache
        Caches whose steps need not run again.
    cache_to : Reference or BuildxCache, optional
        A cache to write; a reference is the image's name under which `export` pushes it.
    """

    name = DOCKER

    def __init__(
        self,
        engine: Engine,
        command: DockerCommand,
        *,
        tags: Sequence[Reference],
        secrets: Sequence[Secret],
        no_cache: bool,
        on_event: OnEvent,
        cache_from: Sequence[Reference | BuildxCache] = (),
        cache_to: Reference | BuildxCache | None = None,
    ) -> None:
        self._engine = engine
        self._command = command
        self._cache_from = cache_from
        self._cache_to = cache_to
        self._tags = tags
        self._secrets = secrets
        self._no_cache = no_cache
        self._on_event = on_event
        self._cached: list[str] = []

    def base(self, source: Reference | Location, platform: str) -> BaseImage:
        """Return what the engine knows of a base, pulled if it does not have it."""
        if isinstance(source, Location):
            raise OptionError(
                f"base-image: the Docker engine does not build on {source}",
                hint="use --builder oci, or `docker load` it and give its name",
            )
        info = self._engine.inspect(str(source))
        if info is None:
            info = self._engine.pull(str(source), platform=platform, on_event=self._on_event)
        return BaseImage(
            reference=source,
            python=self._python_of(info),
            digest=source.digest or _digest_of(info, source),
            platform=info.platform,
            env=info.env,
            labels=info.labels,
        )

    def find(
        self, plans: Sequence[ImagePlan], tags: Sequence[Reference], blob_path: BlobPath
    ) -> tuple[BuiltImage, ...] | None:
        """Return None: what the engine will make is not known before."""
        return None

    def build(self, plan: ImagePlan, blob_path: BlobPath) -> BuiltImage:
        """Write the context and build it."""
        start = time.perf_counter()
        with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
            context = Path(folder, self._context_name(plan))
            write_context(plan, context, blob_path)
            try:
                names = self._command.build(
                    context,
                    tags=[str(tag) for tag in self._tags],
                    platform=plan.platform,
                    secrets=self._secrets,
                    no_cache=self._no_cache,
                    cache_from=self._cache_from,
                    cache_to=self._cache_to,
                    on_event=self._see,
                )
            except BuildError:
                if not self._engine.alive():  # an engine that goes away cancels its builds
                    raise engine_gone(_DOING) from None
                raise
        info = self._find([*names, *map(str, self._tags)])
        base = self._engine.inspect(str(plan.base.pinned)) or self._engine.inspect(
            str(plan.base.reference)
        )
        return BuiltImage(
            id=info.id,
            digest=None,
            plan=plan,
            layers=tuple(_layers(plan, info, base or ImageInfo(id=""), self._cached)),
            size=info.size,
            timings={"build": time.perf_counter() - start},
        )

    def _context_name(self, plan: ImagePlan) -> str:
        """Name the context by what builds have in common whose contexts are worth comparing."""
        names = ",".join(tag.name for tag in self._tags) or f"{plan.function},{plan.target.name}"
        return f"mfimage-{hashlib.sha256(names.encode()).hexdigest()[:16]}"

    def _find(self, names: Sequence[str]) -> ImageInfo:
        """Return the image that was built; engines know it by different digests."""
        for name in names:
            if (info := self._engine.inspect(name)) is not None:
                return info
        raise EngineError(
            f"{_DOING}: the Docker engine does not have {names[0]} afterwards",
            hint="the builder that BUILDX_BUILDER or `docker buildx use` names must load images "
            "into the engine that DOCKER_HOST or the docker context names",
        )

    def _see(self, event: BuildEvent) -> None:
        if event.kind == "cached":
            self._cached.append(event.step)
        self._on_event(event)

    def info(self, image: BuiltImage) -> ImageInfo:
        """Ask the engine for an image's configuration."""
        return self._engine.inspect(image.id) or ImageInfo(id=image.id)

    def layer(self, image: BuiltImage, name: str) -> Iterator[bytes]:
        """Export the folder that a layer fills; of system packages, which fill many, nothing."""
        if name == "dependencies":
            yield from self._engine.export(image.id, VENV)

    def write(
        self, images: Sequence[BuiltImage], output: Location | None, tags: Sequence[Reference]
    ) -> str:
        """Return the image's name: the engine has it already."""
        if output is not None:
            raise OptionError(
                f"output: the docker builder does not write {output}",
                hint="use --builder oci, or `docker save`",
            )
        return str(next(iter(tags), images[0].id))

    def push(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> tuple[str, ...]:
        """Push each tag by the engine."""
        return tuple(
            f"{tag.name}@{self._engine.push(str(tag), on_event=self._on_event)}" for tag in tags
        )

    def export(self, images: Sequence[BuiltImage], tags: Sequence[Reference]) -> None:
        """Push the image, which has the cache in it, under the cache's name."""
        if not isinstance(self._cache_to, Reference):
            return
        name = str(self._cache_to)
        self._engine.tag(images[0].id, name)
        try:
            self._engine.push(name, on_event=self._on_event)
        finally:
            if self._cache_to not in tags:
                self._engine.remove(name)

    def close(self) -> None:
        """Close the connection."""
        self._engine.close()

    def _python_of(self, info: ImageInfo) -> str:
        """Ask an image for its Python, once."""
        known = cache_folder() / "bases" / info.id.removeprefix("sha256:")
        try:
            return known.read_text()
        except OSError:
            version = self._engine.python_version(info.id)
        _remember(known, version)
        return version


def _digest_of(info: ImageInfo, reference: Reference) -> str | None:
    """Return the digest by which a registry has the image, if it came from one."""
    for text in info.repo_digests:
        name, _, digest = text.partition("@")
        if name == reference.name or name in reference.canonical:
            return digest
    return None


def _remember(path: Path, text: str) -> None:
    """Keep what takes time to find out again; a cache that cannot be written is no fault."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        fresh.write_text(text)
        fresh.replace(path)
    except OSError:
        return


def _layers(
    plan: ImagePlan, info: ImageInfo, base: ImageInfo, cached: Sequence[str]
) -> Iterable[BuiltLayer]:
    """Describe an image's layers, by what the Dockerfile makes of the plan."""
    under, reason = len(base.layers), str(plan.base.pinned)
    sizes = [entry.size for entry in base.history if entry.size]
    # The engine does not distinguish empty layers from steps that make none: the first has it all.
    sizes = sizes if len(sizes) == under else [base.size] + [0] * (under - 1)
    for diff_id, size in zip(base.layers, sizes, strict=False):
        yield BuiltLayer(
            name="base", diff_id=diff_id, digest=None, size=size, cached=True, reason=reason
        )
    made = [entry for entry in info.history if entry.created_by.startswith(_LAYERED)]
    steps = list(_steps(plan))
    above = info.layers[under:]
    entries = made[-len(above) :] if len(made) >= len(above) else []
    for number, diff_id in enumerate(above):
        known = number < len(steps) and len(steps) == len(above)
        name, reason, text = steps[number] if known else ("other", "", "")
        entry = entries[number] if entries else HistoryEntry(created_by="", size=0)
        yield BuiltLayer(
            name=name, diff_id=diff_id, digest=None, size=entry.size, reason=reason,
            cached=bool(text) and any(text in step for step in cached),
        )  # fmt: skip


def _steps(plan: ImagePlan) -> Iterable[tuple[str, str, str]]:
    """Yield name and reason of each layer, and what its step's name has in it."""
    if plan.system_packages:
        yield "system", f"apt {' '.join(plan.system_packages)}", "apt-get install"
    yield "dependencies", f"lock {plan.dependencies.digest}", "COPY --from=build /out/"
    yield "workdir", "", "WORKDIR"
    for layer in plan.artifacts:
        digests = ", ".join(blob.digest for blob in layer.blobs)
        folder = artifact_folder(layer)
        yield f"artifact:{','.join(layer.names)}", f"artifact {digests}", f"layers/{folder}/"
    yield "runtime", f"mfimage {plan.version}", "layers/runtime/"
    yield "code", f"function {plan.digest}", "layers/code/"
