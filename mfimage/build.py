"""build: reference + options -> an image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfimage.backends.code_cache import cache_folder
from mfimage.errors import OptionError, PackageError
from mfimage.image.base_image import BaseImage, default_base
from mfimage.image.build_secrets import CA, Secret, read_secrets
from mfimage.image.image_info import ImageInfo
from mfimage.image.options import BuildOptions, split_index
from mfimage.image.plan import ImagePlan, make_plan
from mfimage.image.reference import Reference
from mfimage.image.targets import find_target
from mfimage.package.spec import BlobRef, FunctionSpec, sha256_digest
from mfimage.package.store import Package, blob_name, open_package

if TYPE_CHECKING:
    from mfimage.image.engine import Engine
    from mfimage.image.engine_events import BuildEvent

OnEvent = Callable[["BuildEvent"], None]
Say = Callable[[str], None]
# Where tools keep the path of the certificates that this machine trusts.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that was built.

    Attributes
    ----------
    id : str
        The engine's name for it.
    tags : tuple of str
        What it is called.
    digests : tuple of str
        ``repository@sha256:...`` of each tag that was pushed.
    size : int
        Bytes, unpacked.
    plan : ImagePlan
        What it was built from.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    plan: ImagePlan

    @property
    def name(self) -> str:
        """What to run it by: its digest when it was pushed, else its first tag, else its ID."""
        return next(iter((*self.digests, *self.tags)), self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline wants to know, as JSON values."""
        plan = self.plan
        return {
            "image": self.name,
            "id": self.id,
            "tags": list(self.tags),
            "digests": list(self.digests),
            "size": self.size,
            "target": plan.target.name,
            "platform": plan.platform,
            "function": {"name": plan.function, "digest": plan.digest},
            "lock": plan.dependencies.digest,
            "base": str(plan.base.pinned),
        }


def build(
    reference: str,
    options: BuildOptions,
    *,
    push: bool = False,
    on_event: OnEvent = lambda _: None,
    say: Say = lambda _: None,
) -> Image:
    """Build an image with the Docker engine.

    Parameters
    ----------
    reference : str
        The function package.
    options : BuildOptions
        What the image shall be.
    push : bool
        Push every tag afterwards.
    on_event : callable
        Told of every step.
    say : callable
        Told of what happens between the steps, a line each.

    Raises
    ------
    MfimageError
        Naming what is wrong with the package, the options, the engine or a step.
    """
    if push and not options.tags:
        raise OptionError(
            "push: the image has no name", hint="give it one: --tag REGISTRY/NAME:TAG"
        )
    options = _trusting_host(options)
    package = open_package(reference)
    # Hashing runs beside the imports, which take as long as an engine takes for a code edit.
    with ThreadPoolExecutor(1) as verifying:
        verified = verifying.submit(_verify_blobs, package)
        from mfimage.image.context import context_files
        from mfimage.image.engine import Engine

        verified.result()
    with Engine.connect() as engine:
        base = _find_base(package.spec, options, engine, on_event)
        plan = make_plan(
            package.spec, lock=_target_lock(package, options), base=base, options=options
        )
        say(f"building {plan.function} for {plan.target.name} on {plan.base.pinned}")
        image_id = engine.build(
            context=context_files(plan, _blob_path(package)),
            tags=[str(tag) for tag in options.tags],
            secrets=read_secrets(options.secrets),
            platform=plan.platform,
            no_cache=options.no_cache,
            on_event=on_event,
        )
        digests = _push(engine, options.tags, on_event) if push else ()
        info = engine.inspect(image_id) or ImageInfo(id=image_id)
    image = Image(
        id=image_id,
        tags=tuple(str(tag) for tag in options.tags),
        digests=digests,
        size=info.size,
        plan=plan,
    )
    say(f"built {image.name} ({image.size / 1e6:.1f} MB, {image_id[:19]})")
    return image


def render(reference: str, options: BuildOptions, folder: Path) -> Path:
    """Write the Dockerfile and its context; no engine is needed.

    Raises
    ------
    MfimageError
        Naming what is wrong with the package, the options or the folder.
    """
    from mfimage.image.context import write_context

    options = _trusting_host(options)
    package = open_package(reference)
    _verify_blobs(package)
    chosen = options.base_image or default_base(package.spec)
    # What the base holds is for whoever builds the folder to see.
    base = BaseImage(reference=chosen, python=package.spec.environment.python)
    plan = make_plan(package.spec, lock=_target_lock(package, options), base=base, options=options)
    write_context(plan, folder, _blob_path(package))
    return folder


def _trusting_host(options: BuildOptions) -> BuildOptions:
    """Let the dependency step trust the certificates that this machine was told to trust.

    Behind a proxy that signs connections anew, nothing could be installed otherwise. They are
    mounted for that step only, and what is installed is held against the lock's hashes.
    """
    if any(secret.id == CA for secret in options.secrets):
        return options
    for variable in _CA_VARIABLES:
        path = Path(os.environ.get(variable, ""))
        if path.is_file():
            secret = Secret(id=CA, source=path)
            return dataclasses.replace(options, secrets=(*options.secrets, secret))
    return options


def _find_base(
    spec: FunctionSpec, options: BuildOptions, engine: Engine, on_event: OnEvent
) -> BaseImage:
    chosen = options.base_image or default_base(spec)
    platform = options.platform or spec.environment.platform
    info = engine.inspect(str(chosen))
    if info is None:
        info = engine.pull(str(chosen), platform=platform, on_event=on_event)
    return BaseImage(
        reference=chosen,
        python=_python_of(info, engine),
        digest=_digest_of(info, chosen),
        platform=info.platform,
    )


def _digest_of(info: ImageInfo, reference: Reference) -> str | None:
    """Return the digest by which a registry has the image, if it came from one."""
    for text in info.repo_digests:
        name, _, digest = text.partition("@")
        if name == reference.name or name in reference.canonical:
            return digest
    return None


def _python_of(info: ImageInfo, engine: Engine) -> str:
    """Ask an image for its Python, once."""
    known = cache_folder() / "bases" / info.id.removeprefix("sha256:")
    try:
        return known.read_text()
    except OSError:
        version = engine.python_version(info.id)
    _remember(known, version.encode())
    return version


def _target_lock(package: Package, options: BuildOptions) -> bytes:
    """Lock what the target needs beside the function's own lock, once for each machine."""
    environment = package.spec.environment
    target = find_target(options.target)
    platform = options.platform or environment.platform
    key = [
        environment.lock.digest,
        target.requirements,
        environment.python_minor,
        platform,
        options.index_url,
        options.extra_index_urls,
        # They name the indexes, and only their digest is kept.
        [os.environ.get(variable) for variable in _INDEX_VARIABLES],
    ]
    known = cache_folder() / "locks" / sha256_digest(repr(key).encode()).removeprefix("sha256:")
    if known.is_file() and not options.no_cache:
        return known.read_bytes()
    from mfimage.capture.lock import IndexOptions, lock_for_target

    lock = lock_for_target(
        package.read(environment.lock),
        extra=target.requirements,
        python=environment.python,
        platform=platform,
        index=IndexOptions(
            index_url=split_index(options.index_url)[1] if options.index_url else None,
            extra_index_urls=tuple(options.extra_index_urls),
        ),
    )
    _remember(known, lock)
    return lock


def _remember(path: Path, data: bytes) -> None:
    """Keep what would take time to find out again; a cache that cannot be written is no fault."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError:
        return


def _verify_blobs(package: Package) -> None:
    for ref in package.spec.blobs.values():
        for _ in package.store.stream_blob(ref):
            pass


def _blob_path(package: Package) -> Callable[[BlobRef], Path]:
    def path(ref: BlobRef) -> Path:
        found = Path(package.store.storage.url(blob_name(ref)))
        if not found.is_file():
            raise PackageError(f"{found}: missing", hint="bind the function again")
        return found

    return path


def _push(engine: Engine, tags: tuple[Reference, ...], on_event: OnEvent) -> tuple[str, ...]:
    return tuple(f"{tag.name}@{engine.push(str(tag), on_event=on_event)}" for tag in tags)
