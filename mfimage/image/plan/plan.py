"""What can be said of a lock and its wheels before anything is built."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfimage import __version__
from mfimage.errors import LockError, OptionError
from mfimage.image.plan.base import BaseImage, check_base
from mfimage.image.plan.labels import check_labels, image_labels
from mfimage.image.plan.options import (
    BuildOptions,
    check_packages,
    parse_platform,
    refuse_credentials,
)
from mfimage.image.targets.targets import Target, find_target
from mfimage.package.spec import ArtifactRef, BlobRef, FunctionSpec, sha256_digest
from mfimage.runtime.layout import CODE, FUNCTION, RUNTIME, RUNTIME_FILES, VENV

if TYPE_CHECKING:
    from packaging.tags import Tag


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


def check_wheels(spec: FunctionSpec, platform: str) -> None:
    """Refuse wheels that travel with a function and do not run on the image's platform.

    Raises
    ------
    LockError
        Naming the wheel.
    """
    if not spec.environment.wheels:
        return
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    for name in spec.environment.wheels:
        try:
            tags = parse_wheel_filename(name)[3]
        except InvalidWheelFilename as error:
            raise LockError(f"environment.wheels: {name!r}: {error}") from None
        if not any(_runs_on(tag, platform) for tag in tags):
            raise LockError(
                f"the wheel {name} travels with {spec.name}, but is not for {platform}",
                hint=f"bind the function on {platform}, or build for {spec.environment.platform}",
            )


def _runs_on(tag: Tag, platform: str) -> bool:
    of_linux = tag.platform.startswith(("linux_", "manylinux"))
    return tag.platform == "any" or (of_linux and tag.platform.endswith(_MACHINES[platform]))


def locked_version(lock: bytes, name: str) -> str | None:
    """Return the version of a distribution in a lock, if it is there."""
    packages = tomllib.loads(lock.decode()).get("packages", [])
    return next((each.get("version") for each in packages if each["name"] == name), None)


def check_lock(lock: bytes) -> None:
    """Refuse a lock that would carry a password into the build.

    Raises
    ------
    LockError
        If it does, or is no text.
    """
    try:
        refuse_credentials("the lock", lock.decode())
    except UnicodeDecodeError:
        raise LockError("the lock is no UTF-8 text") from None
    except OptionError as error:
        raise LockError(error.message, hint="lock with an index URL that has no password") from None


# What an image will be: every layer in order, every label, how it starts. Data, no effects.
#
# Layers go from what changes least to what changes most::
#
# base -> system packages -> dependencies -> artifacts -> runtime -> code
#
# Whatever builds it, the same plan gives the same files in the same layers.

# Always there and writable by anyone, with a read-only root (--tmpfs /tmp) too.
HOME = "/tmp"  # noqa: S108

USER = "1000:0"
# An engine stacks at most 127 layers, and bases have some too.
MOST_ARTIFACT_LAYERS = 64


@dataclass(frozen=True, kw_only=True)
class DependencyLayer:
    """The locked distributions, installed into `VENV`.

    Attributes
    ----------
    lock : bytes
        The ``pylock.toml``.
    wheels : mapping of file name to BlobRef
        Wheels that stand in the lock as ``wheels/<file name>``.
    """

    lock: bytes
    wheels: Mapping[str, BlobRef]

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the lock."""
        return sha256_digest(self.lock)


@dataclass(frozen=True, kw_only=True)
class ArtifactLayer:
    """Artifacts that share a layer: one, unless there are more than `MOST_ARTIFACT_LAYERS`.

    Attributes
    ----------
    names : tuple of str
        The artifacts' names.
    blobs : tuple of BlobRef
        Their stored bytes; artifacts of equal content have one.
    """

    names: tuple[str, ...]
    blobs: tuple[BlobRef, ...]


@dataclass(frozen=True, kw_only=True)
class CodeLayer:
    """The function's code and what describes it.

    Attributes
    ----------
    archive : BlobRef
        ``code.tar.gz``, unpacked into the image.
    function_json : bytes
        The package's ``function.json`` without its time.
    """

    archive: BlobRef
    function_json: bytes


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """Everything that decides what an image is; made by `make_plan`.

    Attributes
    ----------
    function, digest : str
        The function's name and its package's digest.
    target : Target
        The interface.
    version : str
        Of mfimage: its files are the runtime layer.
    base : BaseImage
        What to build on.
    python : str
        Python's minor version, as ``3.11``.
    platform : str
        As ``linux/amd64``.
    system_packages : tuple of str
        Debian packages, sorted.
    dependencies, artifacts, code
        The layers.
    runtime : tuple of str
        Patterns of mfimage's own files.
    env, labels : mapping of str to str
        In order; ``PATH`` is the base's with `VENV` before it.
    user, workdir, stop_signal : str
        As the image's configuration has them.
    entrypoint, cmd : tuple of str
        Exec form.
    ports : tuple of int
        TCP ports.
    programs : mapping of str to str
        Commands of ours in the runtime layer; see `Target`.
    secrets : tuple of str
        Ids that the dependency step may be given.
    index_url, extra_index_urls
        Where the dependency step looks.
    """

    function: str
    digest: str
    target: Target
    version: str
    base: BaseImage
    python: str
    platform: str
    system_packages: tuple[str, ...]
    dependencies: DependencyLayer
    artifacts: tuple[ArtifactLayer, ...]
    runtime: tuple[str, ...]
    code: CodeLayer
    env: Mapping[str, str]
    labels: Mapping[str, str]
    user: str
    workdir: str
    stop_signal: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    ports: tuple[int, ...]
    programs: Mapping[str, str]
    secrets: tuple[str, ...]
    index_url: str | None
    extra_index_urls: tuple[str, ...]


def make_plan(
    spec: FunctionSpec, *, lock: bytes, base: BaseImage, options: BuildOptions
) -> ImagePlan:
    """Decide what the image will be.

    Parameters
    ----------
    spec : FunctionSpec
        The function.
    lock : bytes
        ``pylock.toml`` of the function's environment and the target's requirements together.
    base : BaseImage
        What to build on.
    options : BuildOptions
        What was asked.

    Raises
    ------
    OptionError
        If the base does not fit the function, or something would show a password.
    LockError
        If a wheel that travels with the function is for another platform.
    """
    target = find_target(options.target)
    platform = options.platform or parse_platform(spec.environment.platform)
    check_base(spec, base, platform)
    check_wheels(spec, platform)
    check_lock(lock)
    check_packages(spec.environment.system_packages, field="system_packages")
    dependencies = DependencyLayer(lock=lock, wheels=dict(sorted(spec.environment.wheels.items())))
    labels = image_labels(
        spec,
        target=target.name,
        lock=dependencies.digest,
        base=base.reference.canonical,
        base_digest=base.known_digest,
        python=base.python,
        ray=locked_version(lock, "ray") if target.ray else None,
        parts=options.parts,
    )
    check_labels(labels)
    return ImagePlan(
        function=spec.name,
        digest=spec.digest,
        target=target,
        version=__version__,
        base=base,
        python=spec.environment.python_minor,
        platform=platform,
        system_packages=tuple(sorted({*spec.environment.system_packages, *options.apt})),
        dependencies=dependencies,
        artifacts=_artifact_layers(spec.artifacts),
        runtime=RUNTIME_FILES,
        code=CodeLayer(archive=spec.code, function_json=_timeless(spec).to_json()),
        env={**_base_env(), **target.env, **options.env},
        labels={**labels, **options.labels},
        user=USER,
        workdir=f"{FUNCTION}/{CODE}",
        stop_signal="SIGTERM",
        entrypoint=(f"{VENV}/bin/python", "-m", "mfimage.runtime"),
        # Only the image that has Ray Serve can serve.
        cmd=("serve",) if "serve" in options.parts else target.cmd,
        ports=target.ports,
        programs=target.programs,
        secrets=tuple(sorted(secret.id for secret in options.secrets)),
        index_url=options.index_url,
        extra_index_urls=options.extra_index_urls,
    )


def _base_env() -> dict[str, str]:
    return {
        "PYTHONPATH": RUNTIME,
        "PYTHONUNBUFFERED": "1",
        # Nobody can write beside the code, and trying costs time.
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": HOME,
        # An arbitrary uid has no line in /etc/passwd: getpass.getuser() would raise.
        "USER": "mfimage",
    }


def _timeless(spec: FunctionSpec) -> FunctionSpec:
    # The time of binding is no part of the digest, and must be none of the image either.
    return dataclasses.replace(spec, lineage=dataclasses.replace(spec.lineage, created=None))


def _artifact_layers(artifacts: Mapping[str, ArtifactRef]) -> tuple[ArtifactLayer, ...]:
    """Give each blob a layer, the largest first.

    A builder copies everything after a changed layer again, so that way a change costs at most
    its own size again. Sizes count by powers of two: what grows a little keeps its place.
    """
    names: dict[str, list[str]] = {}
    for name, ref in artifacts.items():
        names.setdefault(ref.digest, []).append(name)
    blobs = {ref.digest: BlobRef(digest=ref.digest, size=ref.size) for ref in artifacts.values()}
    order = sorted(blobs.values(), key=lambda b: (-b.size.bit_length(), min(names[b.digest])))
    head, rest = order[: MOST_ARTIFACT_LAYERS - 1], order[MOST_ARTIFACT_LAYERS - 1 :]
    groups = [(blob,) for blob in head] + ([tuple(rest)] if rest else [])
    return tuple(
        ArtifactLayer(
            names=tuple(sorted(name for blob in group for name in names[blob.digest])), blobs=group
        )
        for group in groups
    )
