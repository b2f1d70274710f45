"""What an image will be: every layer in order, every label, how it starts. Data, no effects.

Layers go from what changes least to what changes most::

    base -> system packages -> dependencies -> artifacts -> runtime -> code

Whatever builds it, the same plan gives the same files in the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from mfimage.image.plan.subject import Subject
from mfimage.image.targets.target import Target
from mfimage.package.platforms import MACHINES
from mfimage.package.spec import BlobRef, sha256_digest
from mfimage.runtime.layout import RUNTIME, TARGET_VARIABLE

# It exists and is writable by anyone, with a read-only root (--tmpfs /tmp) too.
HOME = "/tmp"  # noqa: S108  (in the image)
USER = "1000:0"
# An engine stacks at most 127 layers, and bases have some too.
MOST_ARTIFACT_LAYERS = 64
# Of these, those that the smaller artifacts of several functions share.
SHARED_LAYERS = 48
_ENV = {
    "PYTHONPATH": RUNTIME,
    "PYTHONUNBUFFERED": "1",
    # The folders are read-only, and trying costs time.
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": HOME,
    # An arbitrary uid has no line in /etc/passwd: getpass.getuser() would raise.
    "USER": "mfimage",
}


@dataclass(frozen=True, kw_only=True)
class DependencyLayer:
    """The distributions of a ``pylock.toml``, installed into `VENV`."""

    lock: bytes
    # By file name: wheels that the lock names as `wheels/<file name>`.
    wheels: Mapping[str, BlobRef]

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the lock."""
        return sha256_digest(self.lock)


@dataclass(frozen=True, kw_only=True)
class ArtifactLayer:
    """One artifact, or several if there are more than `MOST_ARTIFACT_LAYERS`."""

    names: tuple[str, ...]
    blobs: tuple[BlobRef, ...]  # their stored bytes; artifacts of equal content share one


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """Everything that decides what an image is; made by `make_plan`."""

    subject: Subject
    target: Target
    version: str
    base: BaseImage
    python: str
    platform: str
    system_packages: tuple[str, ...]  # sorted
    dependencies: DependencyLayer
    artifacts: tuple[ArtifactLayer, ...]
    runtime: tuple[str, ...]  # patterns of mfimage's own files, and commands as in `Target`
    # As in the image's configuration; PATH is the base's with `VENV` before it.
    env: Mapping[str, str]
    labels: Mapping[str, str]
    user: str
    workdir: str
    workdir_mode: int
    stop_signal: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    ports: tuple[int, ...]
    programs: Mapping[str, str]
    secrets: tuple[str, ...]  # ids of secrets, and package indexes, for the steps that install
    index_url: str | None
    extra_index_urls: tuple[str, ...]


def make_plan(
    subject: Subject, *, lock: bytes, base: BaseImage, options: BuildOptions
) -> ImagePlan:
    """Decide what the image will be."""
    # ``lock`` is the ``pylock.toml`` of the subject's environment and the target's requirements
    # together. A base or a wheel that does not fit is refused, and whatever would show a password.
    target, environment = options.image_target, subject.environment
    platform = options.platform or parse_platform(environment.platform)
    check_base(subject, base, platform)
    _check_wheels(subject, platform)
    _check_lock(lock)
    check_packages(environment.system_packages, field="system_packages")
    dependencies = DependencyLayer(lock=lock, wheels=dict(sorted(environment.wheels.items())))
    labels = image_labels(
        subject,
        target=target.name,
        lock=dependencies.digest,
        base=base.reference.canonical,
        base_digest=base.known_digest,
        base_id=base.id,
        more=target.labels(lock=lock, python=base.python),
    )
    check_labels(labels)
    # A base's are of its own server, or of the function of another image of ours.
    own = {"PORT": "8000", TARGET_VARIABLE: target.name}
    return ImagePlan(
        subject=subject,
        target=target,
        version=__version__,
        base=base,
        python=environment.python_minor,
        platform=platform,
        system_packages=tuple(sorted({*environment.system_packages, *options.apt})),
        dependencies=dependencies,
        artifacts=_artifact_layers(subject),
        runtime=target.runtime,
        env={**_ENV, **{k: own[k] for k in own if k in base.env}, **target.env, **options.env},
        labels={**labels, **options.labels},
        user=USER,
        workdir=target.workdir,
        workdir_mode=target.workdir_mode,
        stop_signal="SIGTERM",
        entrypoint=target.entrypoint,
        cmd=target.cmd,
        ports=target.ports,
        programs=target.programs,
        secrets=tuple(sorted(secret.id for secret in options.secrets)),
        index_url=options.index_url,
        extra_index_urls=options.extra_index_urls,
    )


def _check_wheels(subject: Subject, platform: str) -> None:
    """Refuse wheels in the package that do not run on the image's platform."""
    environment = subject.environment
    if not environment.wheels:
        return
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    for name in environment.wheels:
        try:
            tags = parse_wheel_filename(name)[3]
        except InvalidWheelFilename as error:
            raise LockError(f"environment.wheels: {name!r}: {error}") from None
        linux = (tag.platform for tag in tags if tag.platform.startswith(("linux_", "manylinux")))
        runs = any(each.endswith(MACHINES[platform]) for each in linux)
        if not runs and all(tag.platform != "any" for tag in tags):
            raise LockError(
                f"the wheel {name} in the package of {subject.name} is not for {platform}",
                hint=f"bind the function on {platform}, or build for {environment.platform}",
            )


def _check_lock(lock: bytes) -> None:
    """Refuse a lock that is not text, or that would carry a password into the build."""
    try:
        refuse_credentials("the lock", lock.decode())
    except UnicodeDecodeError:
        raise LockError("the lock is not UTF-8 text") from None
    except OptionError as error:
        raise LockError(error.message, hint="lock with an index URL without a password") from None


def _artifact_layers(subject: Subject) -> tuple[ArtifactLayer, ...]:
    """Give each blob a layer, the largest first."""
    # A builder copies everything after a changed layer again; in this order a change costs at most
    # its own size again. Sizes count by powers of two, so that what grows a little keeps its place.
    artifacts = subject.artifacts
    names: dict[str, list[str]] = {}
    for name, ref in artifacts.items():
        names.setdefault(ref.digest, []).append(name)
    blobs = {ref.digest: BlobRef(digest=ref.digest, size=ref.size) for ref in artifacts.values()}
    order = sorted(blobs.values(), key=lambda b: (-b.size.bit_length(), min(names[b.digest])))
    if subject.functions and len(order) > MOST_ARTIFACT_LAYERS:
        groups = _shared_layers(order, {digest: min(known) for digest, known in names.items()})
    else:
        head, rest = order[: MOST_ARTIFACT_LAYERS - 1], order[MOST_ARTIFACT_LAYERS - 1 :]
        groups = [(blob,) for blob in head] + ([tuple(rest)] if rest else [])
    return tuple(
        ArtifactLayer(
            names=tuple(sorted(name for blob in group for name in names[blob.digest])), blobs=group
        )
        for group in groups
    )


def _shared_layers(order: Sequence[BlobRef], names: Mapping[str, str]) -> list[tuple[BlobRef, ...]]:
    """Give blobs that are large among these a layer each; the others share some."""
    # By the function that a blob is of, not its digest or place in the order: a function that
    # changed changes one layer, and one that is new or gone moves no other's.
    share = sum(blob.size for blob in order) // MOST_ARTIFACT_LAYERS
    large = [blob for blob in order if blob.size.bit_length() > share.bit_length()]
    large = large[: MOST_ARTIFACT_LAYERS - SHARED_LAYERS]
    shared: dict[int, list[BlobRef]] = {}
    for blob in order[len(large) :]:
        function = names[blob.digest].partition(":")[0]
        number = int(sha256_digest(function.encode())[-8:], 16) % SHARED_LAYERS
        shared.setdefault(number, []).append(blob)
    return [(blob,) for blob in large] + [tuple(shared[number]) for number in sorted(shared)]
