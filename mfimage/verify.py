"""verify: an image and its function package -> whether a build gives the same image again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from mfimage.errors import OptionError
from mfimage.image.builder import DOCKER, OCI
from mfimage.image.builders import open_builder
from mfimage.image.checks.built import placed
from mfimage.image.checks.compare import FileChange, compare_layers
from mfimage.image.checks.config import LOCK_FILE
from mfimage.image.find.files import read_file
from mfimage.image.find.places import find_image
from mfimage.image.plan.labels import TARGET
from mfimage.image.plan.options import LABEL_PREFIX, BuildOptions
from mfimage.image.plan.plan import make_plan
from mfimage.image.plan.subject import FUNCTION, FUNCTIONS, STEP
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.secrets.build import read_secrets
from mfimage.image.targets import find_target
from mfimage.package.platforms import machine_platform
from mfimage.package.spec import sha256_digest
from mfimage.steps.capture import open_source
from mfimage.terminal import visible

if TYPE_CHECKING:
    from mfimage.image.oci.images import StoredImage, StoredLayer

Say = Callable[[str], None]
_BASE = "org.opencontainers.image.base."
_REFERENCES = {
    FUNCTION: "function package",
    FUNCTIONS: "function packages, all of them,",
    STEP: "file and step",
}
_OCI_HISTORY = "mfimage "  # how the history's lines of the oci builder start


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """Whether one layer is the same."""

    name: str
    diff_id: str  # the image's; the new build's if the image has no such layer
    same: bool  # file times do not count if Docker built it
    changes: tuple[FileChange, ...] = ()  # how the files of the new build differ
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether a build of the function package gives the image again."""

    image: str
    id: str  # digests of the image's configuration, and of the new build's
    rebuilt: str
    builder: str
    layers: tuple[LayerResult, ...]  # lowest first
    # Keys of the configuration that differ, such as Labels; for an image that Docker built,
    # of those that decide how it runs.
    settings: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs that counts."""
        return all(layer.same for layer in self.layers) and not self.settings

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**dataclasses.asdict(self), "same": self.same}

    def to_text(self) -> str:
        """Return a line for each layer, followed by its files that differ."""
        width = max(len(layer.name) for layer in self.layers)
        lines = []
        for layer in self.layers:
            verdict = "same" if layer.same else "differs"
            text = f"{layer.name:<{width}}  {verdict:<7}  {layer.diff_id[:19]}  {layer.detail}"
            lines.append(text.rstrip())
            if not layer.same:
                lines += [f"  {change}" for change in layer.changes]
        lines += [f"the configuration's {name} differs" for name in self.settings]
        return "\n".join(map(visible, lines))


def verify(
    image: str,
    references: str | Sequence[str],
    options: BuildOptions,
    *,
    say: Say = lambda _: None,
) -> Verification:
    """Build an image again, with its own lock and base, and compare.

    Parameters
    ----------
    image : str
        ``oci:DIR``, ``oci-archive:FILE``, ``docker-archive:FILE``, or a name or ID.
    references : str or sequence of str
        The function package, or several; for an image of a step, ``file.py:step``.
    options : BuildOptions
        Options of the original build that the image does not state: variables, labels, packages, a
        base without a digest, credentials.
    say : callable
        Receives progress, a line at a time.

    Raises
    ------
    MfimageError
        If the image is not of this function or step, or cannot be built.
    """
    platform = options.platform or machine_platform()
    with find_image(image, platform=platform).open() as original:
        labels = (original.config.get("config") or {}).get("Labels") or {}
        source = open_source(
            references, dataclasses.replace(options, target=labels.get(TARGET, options.target))
        )
        subject = source.subject
        held = labels.get(f"{LABEL_PREFIX}{subject.kind}.digest")
        if held != subject.digest:
            holds = f"the {subject.kind} {held}" if held else "something else"
            raise OptionError(
                f"image: {image} holds {holds}, not the {subject.kind} {subject.digest}",
                hint=f"name the {_REFERENCES[subject.kind]} that it was built from",
            )
        lock = read_file(original.layers[-1], LOCK_FILE)
        if lock is None:
            raise OptionError(
                f"image: {image} has no {LOCK_FILE} in its last layer",
                hint="an older mfimage built it, or layers were added: build it again",
            )
        options = _original_options(options, labels, original, platform)
        secrets = read_secrets(options.secrets)
        # As if it were pushed: no place for the image is needed.
        opened = open_builder(options, push=True, secrets=secrets, on_event=lambda _: None, say=say)
        with closing(opened) as builder:
            assert options.base_image is not None
            base = builder.base(options.base_image, platform)
            plan = make_plan(subject, base=base, lock=lock, options=options)
            say(f"building {subject.name} on {base.pinned} again, by {builder.name}")
            built = builder.build(plan, source.unverified_file)
            names = [layer.name for layer in built.layers]
            with (
                placed(builder, built) as name,
                find_image(name, platform=platform).open() as again,
            ):
                return _compare(image, original, again, builder.name, names)


def _original_options(
    options: BuildOptions, labels: Mapping[str, str], original: StoredImage, platform: str
) -> BuildOptions:
    """Return the options that the image was built with, as far as it states them."""
    history = original.config.get("history") or ()
    by_oci = any((entry.get("created_by") or "").startswith(_OCI_HISTORY) for entry in history)
    target = labels.get(TARGET, options.target)
    return dataclasses.replace(
        options,
        target=target,
        **find_target(target).options_from(labels),
        platform=platform,
        base_image=options.base_image or _base(labels),
        builder=OCI if by_oci else DOCKER,
        # A cache holds what was built before, which proves nothing.
        no_cache=True,
        tags=(),
        output=None,
    )


def _base(labels: Mapping[str, str]) -> Reference:
    name, digest = labels.get(f"{_BASE}name"), labels.get(f"{_BASE}digest")
    if not name:
        raise OptionError(
            "image: it does not state which base it was built on",
            hint="name that base: --base-image",
        )
    reference = parse_reference(name)
    return reference.with_digest(digest) if digest else reference


def _compare(
    name: str, one: StoredImage, other: StoredImage, builder: str, names: list[str]
) -> Verification:
    layers = [
        _compare_layer(layer or "beyond", before, after, exactly=builder != DOCKER)
        for layer, before, after in zip_longest(names, one.layers, other.layers)
        if before or after
    ]
    return Verification(
        image=name,
        id=sha256_digest(one.raw_config),
        rebuilt=sha256_digest(other.raw_config),
        builder=builder,
        layers=tuple(layers),
        settings=tuple(_settings(one.config, other.config, exactly=builder != DOCKER)),
    )


def _compare_layer(
    name: str, before: StoredLayer | None, after: StoredLayer | None, *, exactly: bool
) -> LayerResult:
    if before is None or after is None:
        layer, where = (before, "image") if before else (after, "new build")
        assert layer is not None
        detail = f"only in the {where}"
        return LayerResult(name=name, diff_id=layer.diff_id, same=False, detail=detail)
    if before.diff_id == after.diff_id:
        return LayerResult(name=name, diff_id=before.diff_id, same=True)
    changes = compare_layers(before, after)
    same = not exactly and all(change.only_time for change in changes)
    detail = "except for times" if same else f"{len(changes)} files"
    return LayerResult(name=name, diff_id=before.diff_id, same=same, changes=changes, detail=detail)


def _settings(one: Mapping[str, Any], other: Mapping[str, Any], *, exactly: bool) -> Iterator[str]:
    """Yield which settings differ; Docker adds times, and names of its own."""
    before, after = one.get("config") or {}, other.get("config") or {}
    for key in sorted({*before, *after} - {"Image", "Hostname"}):
        if (before.get(key) or None) != (after.get(key) or None):
            yield key
    if exactly:
        for key in sorted({*one, *other} - {"config", "rootfs"}):
            if one.get(key) != other.get(key):
                yield key
