"""verify: an image and its function package -> whether a build gives the same image again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mfimage.errors import OptionError
from mfimage.image.builder import DOCKER, OCI
from mfimage.image.builders import open_builder
from mfimage.image.checks.compare import FileChange, compare_layers
from mfimage.image.checks.config import LOCK_FILE
from mfimage.image.find.run import image_anywhere, machine_platform, saved
from mfimage.image.find.seen import read_member
from mfimage.image.oci.base import read_image
from mfimage.image.plan.labels import FUNCTION_DIGEST, TARGET
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import make_plan
from mfimage.image.registry.location import OCI as OCI_LAYOUT
from mfimage.image.registry.location import Location
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.secrets.build import read_secrets
from mfimage.image.targets import find_target
from mfimage.package.spec import sha256_digest
from mfimage.package.store import open_package

if TYPE_CHECKING:
    from mfimage.image.builder import Builder, BuiltImage
    from mfimage.image.oci.images import StoredImage

Say = Callable[[str], None]
_BASE = "org.opencontainers.image.base."
# What the oci builder's lines of a history start with.
_OURS = "mfimage "


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What came of one layer.

    Attributes
    ----------
    name : str
        As ``dependencies``.
    diff_id : str
        The image's, or the new build's of a layer that only this one has.
    same : bool
        Whether it is the same; where Docker built it, times do not count.
    changes : tuple of FileChange
        How the new build's files differ.
    detail : str
        What else there is to say.
    """

    name: str
    diff_id: str
    same: bool
    changes: tuple[FileChange, ...] = ()
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether an image is what its function package gives.

    Attributes
    ----------
    image, id : str
        As it was asked for; its configuration's digest.
    rebuilt : str
        The configuration's digest of the new build.
    builder : str
        What built it, and built it again.
    layers : tuple of LayerResult
        Lowest first.
    settings : tuple of str
        Parts of the configuration that differ, as ``Labels``; of an image of Docker's, those that
        decide how it runs.
    """

    image: str
    id: str
    rebuilt: str
    builder: str
    layers: tuple[LayerResult, ...]
    settings: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs that counts."""
        return all(layer.same for layer in self.layers) and not self.settings

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        plain = dataclasses.asdict(self)
        layers = [
            {**vars(layer), "changes": [change.to_dict() for change in layer.changes]}
            for layer in self.layers
        ]
        return {**plain, "same": self.same, "layers": layers, "settings": list(self.settings)}

    def to_text(self) -> str:
        """Return it as lines for people: each layer, and below it its files that differ."""
        width = max(len(layer.name) for layer in self.layers)
        lines = []
        for layer in self.layers:
            verdict = "same" if layer.same else "differs"
            text = f"{layer.name:<{width}}  {verdict:<7}  {layer.diff_id[:19]}  {layer.detail}"
            lines.append(text.rstrip())
            if not layer.same:
                lines += [f"  {change}" for change in layer.changes]
        lines += [f"the configuration's {name} differs" for name in self.settings]
        return "\n".join(lines)


def verify(
    image: str, reference: str, options: BuildOptions, *, say: Say = lambda _: None
) -> Verification:
    """Build an image again, by the lock and the base that it names, and compare.

    Parameters
    ----------
    image : str
        ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``, or a name.
    reference : str
        The function package.
    options : BuildOptions
        What it was built with, as far as the image does not say: variables, labels, packages, a
        base without a digest, credentials.
    say : callable
        Told of what happens, a line each.

    Raises
    ------
    MfimageError
        When it is no image of this function, or cannot be built.
    """
    package = open_package(reference)
    platform = options.platform or machine_platform()
    with image_anywhere(image, platform) as original:
        labels = (original.config.get("config") or {}).get("Labels") or {}
        if labels.get(FUNCTION_DIGEST) != package.spec.digest:
            raise OptionError(
                f"image: {image} holds the function {labels.get(FUNCTION_DIGEST)}, "
                f"not {package.spec.digest}",
                hint="name the function package that it was built from",
            )
        lock = read_member(original.layers[-1].open, LOCK_FILE)
        if lock is None:
            raise OptionError(
                f"image: {image} has no {LOCK_FILE} in its last layer",
                hint="an older mfimage built it, or something was added: build it anew",
            )
        options = _as_it_was(options, labels, original, platform)
        builder = open_builder(
            options,
            push=True,  # it goes nowhere, which is for us to know
            secrets=read_secrets(options.secrets),
            on_event=lambda _: None,
            say=say,
        )
        with closing(builder):
            source = options.base_image
            assert source is not None
            base = builder.base(source, platform)
            plan = make_plan(package.spec, base=base, lock=lock, options=options)
            say(f"building {plan.function} on {base.pinned} again, by {builder.name}")
            built = builder.build(plan, package.store.unverified_file)
            with _stored(builder, built, platform) as again:
                return _compare(image, original, again, builder.name, built)


def _as_it_was(
    options: BuildOptions, labels: Mapping[str, str], original: StoredImage, platform: str
) -> BuildOptions:
    """Return the options that the image was built with, as far as it says them."""
    history = original.config.get("history") or ()
    by_us = any((entry.get("created_by") or "").startswith(_OURS) for entry in history)
    target = labels.get(TARGET, options.target)
    return dataclasses.replace(
        options,
        target=target,
        **find_target(target).options_from(labels),
        platform=platform,
        base_image=options.base_image or _base(labels),
        builder=OCI if by_us else DOCKER,
        # What is in a cache is what was built before, and proves nothing.
        no_cache=True,
        tags=(),
        output=None,
    )


def _base(labels: Mapping[str, str]) -> Reference:
    name, digest = labels.get(f"{_BASE}name"), labels.get(f"{_BASE}digest")
    if not name:
        raise OptionError(
            "image: it does not say which base it was built on",
            hint="name it as it was then: --base-image",
        )
    reference = parse_reference(name)
    return reference.with_digest(digest) if digest else reference


@contextmanager
def _stored(builder: Builder, built: BuiltImage, platform: str) -> Iterator[StoredImage]:
    if builder.name == DOCKER:
        with saved(built.id) as location, read_image(location, platform) as image:
            yield image
        return
    with TemporaryDirectory(prefix="mfimage-") as folder:
        place = Location(kind=OCI_LAYOUT, path=Path(folder) / "layout")
        builder.write([built], place, ())
        with read_image(place, platform) as image:
            yield image


def _compare(
    name: str, one: StoredImage, other: StoredImage, builder: str, built: BuiltImage
) -> Verification:
    names = [layer.name for layer in built.layers]
    layers = []
    for number in range(max(len(one.layers), len(other.layers))):
        called = names[number] if number < len(names) else "beyond"
        before = one.layers[number] if number < len(one.layers) else None
        after = other.layers[number] if number < len(other.layers) else None
        if before is None or after is None:
            only = "only the image has it" if before else "only the new build has it"
            diff_id = (before or after).diff_id  # type: ignore[union-attr]
            layers.append(LayerResult(name=called, diff_id=diff_id, same=False, detail=only))
        elif before.diff_id == after.diff_id:
            layers.append(LayerResult(name=called, diff_id=before.diff_id, same=True))
        else:
            changes = compare_layers(before, after)
            times = builder == DOCKER and all(change.only_time for change in changes)
            detail = "but for times" if times else f"{len(changes)} files"
            layers.append(
                LayerResult(
                    name=called, diff_id=before.diff_id, same=times, changes=changes, detail=detail
                )
            )
    return Verification(
        image=name,
        id=sha256_digest(one.raw_config),
        rebuilt=sha256_digest(other.raw_config),
        builder=builder,
        layers=tuple(layers),
        settings=tuple(_settings(one.config, other.config, exactly=builder != DOCKER)),
    )


def _settings(one: Mapping[str, Any], other: Mapping[str, Any], *, exactly: bool) -> Iterator[str]:
    """Yield which settings differ; Docker adds times, and names of its own making."""
    before, after = one.get("config") or {}, other.get("config") or {}
    for key in sorted({*before, *after} - {"Image", "Hostname"}):
        if (before.get(key) or None) != (after.get(key) or None):
            yield key
    if exactly:
        for key in sorted({*one, *other} - {"config", "rootfs"}):
            if one.get(key) != other.get(key):
                yield key
