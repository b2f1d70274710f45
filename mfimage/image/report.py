"""What a build reports to a pipeline: JSON, files, timings, and whether the image is too large."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mfimage.errors import BuildError, OptionError
from mfimage.image.secrets.scan import Reader

if TYPE_CHECKING:
    from mfimage.image.builder import Builder, BuiltImage
    from mfimage.image.checks.report import Report
    from mfimage.image.plan.plan import ImagePlan

_MOST_NAMED = 5
# What is reported of a `BuiltLayer`.
_LAYER = ("name", "digest", "diff_id", "size", "cached", "reason")


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that was built, for one or several platforms.

    Attributes
    ----------
    builder : str
        Which builder made it.
    images : tuple of BuiltImage
        One for each platform.
    tags : tuple of str
        Its names.
    digests : tuple of str
        ``repository@sha256:...`` of each tag that was pushed.
    place : str, optional
        Where it is other than in a registry: ``oci:DIR``, or its name in the engine.
    timings : mapping
        Seconds by phase: plan, build, scan, test, write, push, export.
    tests : tuple of Report
        What ``mfimage test`` found, for each image that was tested.
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
        """The digest of the first platform's configuration, by which an engine finds it."""
        return self.images[0].id

    @property
    def size(self) -> int:
        """Bytes, of all platforms."""
        return sum(image.size for image in self.images)

    @property
    def plan(self) -> ImagePlan:
        """The plan of the first platform."""
        return self.images[0].plan

    @property
    def name(self) -> str:
        """What finds it: its digest if it was pushed, else its place."""
        return next(iter((*self.digests, *filter(None, [self.place]), *self.tags)), self.id)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        pushed = self.digests[0].partition("@")[2] if self.digests else None
        several = len(self.images) > 1
        digest = pushed or (None if several else self.images[0].digest)
        found = {
            "image": self.name,
            "id": self.id,
            "digest": digest,
            "index": pushed if several else None,
            "tags": list(self.tags),
            "digests": list(self.digests),
            "place": self.place,
            "builder": self.builder,
            "cached": all(image.cached for image in self.images),
            "size": self.size,
            "target": self.plan.target.name,
            "platform": ",".join(image.platform for image in self.images),
            **self.plan.subject.to_dict(),
            "lock": self.plan.dependencies.digest,
            "base": str(self.plan.base.pinned),
            "platforms": [_image(image, None if several else digest) for image in self.images],
            "timings": _rounded(self.timings),
        }
        return {**found, "tests": [each.to_dict() for each in self.tests]} if self.tests else found


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
        "layers": [{name: getattr(layer, name) for name in _LAYER} for layer in image.layers],
        "timings": _rounded(image.timings),
    }


def _rounded(timings: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in timings.items()}


@contextmanager
def timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    """Measure how many seconds a phase takes."""
    start = time.perf_counter()
    yield
    timings[phase] = time.perf_counter() - start


def write_id(path: Path, found: Mapping[str, Any]) -> None:
    """Write the image's ID, or an index's digest, as ``docker build --iidfile`` does."""
    _write(path, found["index"] or found["id"], "iidfile")


def write_metadata(path: Path, found: Mapping[str, Any]) -> None:
    """Write what buildx writes, and the whole report as ``mfimage``."""
    buildx = {
        "containerimage.digest": found["digest"],
        "containerimage.config.digest": None if found["index"] else found["id"],
        "image.name": ",".join(found["tags"]) or None,
    }
    document = {**{name: value for name, value in buildx.items() if value}, "mfimage": found}
    _write(path, json.dumps(document, indent=2) + "\n", "metadata-file")


def _write(path: Path, text: str, field: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise OptionError(f"{field}: {path} cannot be written: {error.strerror}") from None


def check_size(builder: Builder, image: BuiltImage, limit: int | None) -> None:
    """Fail if an image has more bytes than allowed."""
    if limit is None or image.size <= limit:
        return
    layers = {layer.name: layer.size for layer in image.layers}
    parts = {f"base {image.plan.base.reference}": layers.get("base", 0)}
    for layer in image.plan.artifacts:
        parts[f"artifact {', '.join(layer.names)}"] = sum(blob.size for blob in layer.blobs)
    parts |= _distributions(builder, image) or {"distributions": layers.get("dependencies", 0)}
    largest = sorted(parts.items(), key=lambda part: -part[1])[:_MOST_NAMED]
    how = "compressed" if image.digest else "unpacked"
    lines = [
        f"max-size: the image for {image.platform} has {image.size / 1e6:.1f} MB ({how}), "
        f"{limit / 1e6:.1f} MB are allowed; its largest parts, unpacked:",
        *(f"  {size / 1e6:8.1f} MB  {name}" for name, size in largest if size),
    ]
    raise BuildError(
        "\n".join(lines),
        hint="leave out what the function does not need (mfimage env shows why each is there), "
        "or raise --max-size",
    )


def _distributions(builder: Builder, image: BuiltImage) -> dict[str, int]:
    """Return the size of each distribution, from its list of files."""
    if image.cached:
        return {}  # it is in the registry, not here
    sizes: dict[str, int] = {}
    reader = cast(BinaryIO, Reader(builder.layer(image, "dependencies")))
    with tarfile.open(fileobj=reader, mode="r|") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            is_list = path.name == "RECORD" and path.parent.suffix == ".dist-info"
            if is_list and (content := tar.extractfile(member)):
                rows = content.read().decode().splitlines()
                last = (row.rpartition(",")[2].strip() for row in rows)
                name = " ".join(path.parent.stem.split("-")[:2])
                sizes[f"distribution {name}"] = sum(int(n) for n in last if n.isdigit())
    return sizes
