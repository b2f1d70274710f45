"""What a build tells a pipeline: as JSON, in files, and whether it kept to its budget."""

from __future__ import annotations

import json
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mfimage.errors import BuildError, OptionError
from mfimage.image.secrets.scanning import Reader

if TYPE_CHECKING:
    from mfimage.image.builder import Builder, BuiltImage
    from mfimage.image.checks.report import Report
    from mfimage.image.plan.plan import ImagePlan

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]i?B?|B)", re.IGNORECASE)
_POWERS = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that was built, for one platform or several.

    Attributes
    ----------
    builder : str
        ``docker`` or ``oci``.
    images : tuple of BuiltImage
        One a platform.
    tags : tuple of str
        What it is called.
    digests : tuple of str
        ``repository@sha256:...`` of each tag that was pushed.
    place : str or None
        Where it was put, other than a registry: ``oci:DIR``, or its name in the engine.
    timings : mapping of str to float
        Seconds by phase: plan, build, scan, test, write, push.
    tests : tuple of Report
        What was tested of each image that this machine can run, if that was asked for.
    """

    builder: str
    images: tuple[BuiltImage, ...]
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    place: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    tests: tuple[Report, ...] = ()

    @property
    def id(self) -> str:
        """The configuration's digest, by which an engine knows it; of the first platform."""
        return self.images[0].id

    @property
    def size(self) -> int:
        """Bytes, of all platforms."""
        return sum(image.size for image in self.images)

    @property
    def plan(self) -> ImagePlan:
        """What it was made from; for the first platform."""
        return self.images[0].plan

    @property
    def name(self) -> str:
        """What to get it by: its digest when it was pushed, else where it is."""
        return next(iter((*self.digests, *filter(None, [self.place]), *self.tags)), self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline wants to know, as JSON values."""
        plain = report(
            self.images,
            name=self.name,
            builder=self.builder,
            tags=self.tags,
            digests=self.digests,
            place=self.place,
            timings=self.timings,
        )
        return {**plain, "tests": [each.to_dict() for each in self.tests]} if self.tests else plain


def report(
    images: Sequence[BuiltImage],
    *,
    name: str,
    builder: str,
    tags: Sequence[str],
    digests: Sequence[str],
    place: str | None,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Return everything there is to know of a build, as JSON values.

    Parameters
    ----------
    images : sequence of BuiltImage
        One a platform.
    name : str
        What to get it by.
    builder : str
        ``docker`` or ``oci``.
    tags, digests : sequence of str
        What it is called; ``repository@sha256:...`` of each tag that was pushed.
    place : str or None
        Where it is, other than in a registry.
    timings : mapping of str to float
        Seconds by phase.
    """
    plan = images[0].plan
    pushed = digests[0].partition("@")[2] if digests else None
    digest = pushed or (images[0].digest if len(images) == 1 else None)
    return {
        "image": name,
        "id": images[0].id,
        "digest": digest,
        "index": pushed if len(images) > 1 else None,
        "tags": list(tags),
        "digests": list(digests),
        "place": place,
        "builder": builder,
        "cached": all(image.cached for image in images),
        "size": sum(image.size for image in images),
        "target": plan.target.name,
        "platform": ",".join(image.platform for image in images),
        "function": {"name": plan.function, "digest": plan.digest},
        "lock": plan.dependencies.digest,
        "base": str(plan.base.pinned),
        "platforms": [_image(image, digest if len(images) == 1 else None) for image in images],
        "timings": _rounded(timings),
    }


def _image(image: BuiltImage, digest: str | None) -> dict[str, Any]:
    base = image.plan.base
    return {
        "platform": image.platform,
        "id": image.id,
        "digest": image.digest or digest,
        "size": image.size,
        "cached": image.cached,
        "base": {"name": str(base.reference), "digest": base.known_digest},
        "python": base.python,
        "lock": image.plan.dependencies.digest,
        "layers": [
            {
                "name": layer.name,
                "digest": layer.digest,
                "diff_id": layer.diff_id,
                "size": layer.size,
                "cached": layer.cached,
                "reason": layer.reason,
            }
            for layer in image.layers
        ],
        "timings": _rounded(image.timings),
    }


def _rounded(timings: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in timings.items()}


class Clock:
    """Measures how long phases take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def write_id(path: Path, found: Mapping[str, Any]) -> None:
    """Write the image's ID, of an index its digest, as ``docker build --iidfile`` does."""
    _write(path, found["index"] or found["id"], "iidfile")


def write_metadata(path: Path, found: Mapping[str, Any]) -> None:
    """Write what buildx writes, by its names, and the whole report as ``mfimage``."""
    known = {
        "containerimage.digest": found["digest"],
        "containerimage.config.digest": None if found["index"] else found["id"],
        "image.name": ",".join(found["tags"]) or None,
    }
    document = {**{name: value for name, value in known.items() if value}, "mfimage": found}
    _write(path, json.dumps(document, indent=2) + "\n", "metadata-file")


def _write(path: Path, text: str, field: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise OptionError(f"{field}: {path} cannot be written: {error.strerror}") from None


def check_size(builder: Builder, image: BuiltImage, most: int | None) -> None:
    """Fail when an image is larger than it may be.

    Raises
    ------
    BuildError
        Naming what takes most of the space.
    """
    if most is None or image.size <= most:
        return
    artifacts = {
        f"artifact {', '.join(layer.names)}": sum(blob.size for blob in layer.blobs)
        for layer in image.plan.artifacts
    }
    parts = {f"base {image.plan.base.reference}": _size_of(image, "base")}
    found = _distributions(builder, image) or {"distributions": _size_of(image, "dependencies")}
    largest = {**parts, **artifacts, **found}
    named = sorted(largest.items(), key=lambda part: -part[1])[:_MOST_NAMED]
    lines = [f"  {size / 1e6:8.1f} MB  {name}" for name, size in named if size]
    how = "compressed" if image.digest else "unpacked"
    raise BuildError(
        "\n".join(
            [
                f"max-size: the image for {image.platform} has {image.size / 1e6:.1f} MB ({how}), "
                f"{most / 1e6:.1f} MB are allowed; the largest parts, unpacked:",
                *lines,
            ]
        ),
        hint="leave out what the function does not need (mfimage env shows why each is there), "
        "or raise --max-size",
    )


def _size_of(image: BuiltImage, name: str) -> int:
    return sum(layer.size for layer in image.layers if layer.name == name)


def _distributions(builder: Builder, image: BuiltImage) -> dict[str, int]:
    """Return what each distribution takes, as its own list of files has it."""
    sizes: dict[str, int] = {}
    if image.cached:
        return sizes  # it is in the registry, not here
    reader = cast(BinaryIO, Reader(builder.layer(image, "dependencies")))
    with tarfile.open(fileobj=reader, mode="r|") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.name == "RECORD" and path.parent.suffix == ".dist-info":
                content = tar.extractfile(member)
                if content is not None:
                    name = " ".join(path.parent.stem.split("-")[:2])
                    sizes[f"distribution {name}"] = _recorded(content.read().decode())
    return sizes


def _recorded(text: str) -> int:
    last = (line.rpartition(",")[2].strip() for line in text.splitlines())
    return sum(int(size) for size in last if size.isdigit())
