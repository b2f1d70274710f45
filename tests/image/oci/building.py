"""Building samples without an engine, and looking into what came out."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mfimage.image.builder import BuiltImage
from mfimage.image.oci.builder import OciBuilder
from mfimage.image.oci.compression import decompressed
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.location import Location
from tests.image.sample import Sample


@contextmanager
def oci_builder(**options: Any) -> Iterator[OciBuilder]:
    given = {
        "compression": "gzip", "compiled": False, "fresh": False, "secrets": {},
        "on_event": lambda _: None, **options,
    }  # fmt: skip
    with closing(OciBuilder(**given)) as made:
        yield made


def plan_on(
    builder: OciBuilder, sample: Sample, base: Location, *, at: str = "linux/amd64", **options: Any
) -> ImagePlan:
    found = builder.base(base, at)
    return sample.plan(base=found, platform=at, **options)


def build(
    sample: Sample, base: Location, out: Location | None = None, **options: Any
) -> BuiltImage:
    """Build; write it if told where to."""
    with oci_builder() as builder:
        image = builder.build(plan_on(builder, sample, base, **options), sample.blobs.path)
        if out:
            builder.write([image], out, [])
        return image


class Written:
    """An OCI layout that was written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = json.loads((folder / "index.json").read_bytes())

    def json(self, digest: str) -> Any:
        return json.loads(self.blob(digest).read_bytes())

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    @property
    def manifest(self) -> Any:
        return self.json(self.index["manifests"][0]["digest"])

    @property
    def config(self) -> Any:
        return self.json(self.manifest["config"]["digest"])

    def members(self, number: int) -> dict[str, tarfile.TarInfo]:
        """List what a layer holds."""
        with self._layer(number) as tar:
            return {member.name: member for member in tar}

    def files(self, number: int) -> dict[str, bytes]:
        """Read the files of a layer."""
        with self._layer(number) as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}

    @contextmanager
    def _layer(self, number: int) -> Iterator[tarfile.TarFile]:
        digest = self.manifest["layers"][number]["digest"]
        with (
            self.blob(digest).open("rb") as file,
            decompressed(file) as plain,
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            yield tar


def names(image: BuiltImage) -> Sequence[str]:
    return [layer.name for layer in image.layers]
