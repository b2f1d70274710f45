"""An image as it stands somewhere, looked at without pulling it."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from mfimage.errors import PackageError
from mfimage.image.find.info import HistoryEntry, ImageInfo
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.package.spec import sha256_digest
from mfimage.runtime.layout import FUNCTION, SBOM

if TYPE_CHECKING:
    from mfimage.image.oci.images import StoredImage

ENGINE, REGISTRY, FILES = "engine", "registry", "files"
SBOM_PATH = f"{FUNCTION}/{SBOM}"
MOST = 32 << 20


@dataclass(frozen=True, kw_only=True)
class SeenLayer:
    """One layer.

    Attributes
    ----------
    digest : str or None
        ``sha256:<hex>`` of what a registry keeps; None in an engine, which does not tell.
    size : int
        Bytes: compressed in a registry, unpacked in an engine.
    instruction : str
        What made it, as the history says.
    """

    digest: str | None
    size: int
    instruction: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"digest": self.digest, "size": self.size, "instruction": self.instruction}


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    """An image, and where it is.

    Attributes
    ----------
    name : str
        As it was asked for.
    place : str
        ``engine``, ``registry`` or ``files``.
    info : ImageInfo
        Its configuration.
    layers : tuple of SeenLayer
        Lowest first.
    digest, index : str or None
        Its manifest's, and that of the index which lists it, where there are.
    platforms : tuple of str
        What that index has.
    sbom : bytes or None
        The document that came with it.
    """

    name: str
    place: str
    info: ImageInfo
    layers: tuple[SeenLayer, ...]
    digest: str | None = None
    index: str | None = None
    platforms: tuple[str, ...] = ()
    sbom: bytes | None = field(default=None, repr=False)


def seen(name: str, place: str, stored: StoredImage, **more: Any) -> SeenImage:
    """Describe an image that was read; ``more`` is what `SeenImage` has besides."""
    sizes = [layer.descriptor.size for layer in stored.layers]
    made = [
        entry.get("created_by") or entry.get("comment") or ""
        for entry in stored.config.get("history") or ()
        if not entry.get("empty_layer")
    ]
    # A history is optional, and may be short.
    made = [""] * (len(sizes) - len(made)) + made[: len(sizes)]
    return SeenImage(
        name=name,
        place=place,
        info=dataclasses.replace(
            info_of(stored.config, sizes), id=sha256_digest(stored.raw_config)
        ),
        digest=stored.digest,
        layers=tuple(
            SeenLayer(digest=layer.descriptor.digest, size=layer.descriptor.size, instruction=text)
            for layer, text in zip(stored.layers, made, strict=True)
        ),
        **more,
    )


def info_of(config: Mapping[str, Any], sizes: Sequence[int]) -> ImageInfo:
    """Read an OCI image configuration.

    Parameters
    ----------
    config : mapping
        The document.
    sizes : sequence of int
        Of the layers, lowest first.
    """
    inner: Mapping[str, Any] = config.get("config") or {}
    return ImageInfo(
        id="",
        size=sum(sizes),
        os=config.get("os") or "linux",
        architecture=config.get("architecture") or "",
        variant=config.get("variant") or "",
        created=config.get("created") or "",
        env=dict(pair.partition("=")[::2] for pair in inner.get("Env") or ()),
        labels=dict(inner.get("Labels") or {}),
        user=inner.get("User") or "",
        working_dir=inner.get("WorkingDir") or "",
        entrypoint=tuple(inner.get("Entrypoint") or ()),
        command=tuple(inner.get("Cmd") or ()),
        layers=tuple((config.get("rootfs") or {}).get("diff_ids") or ()),
        history=tuple(_history(config.get("history") or (), iter(sizes))),
    )


def _history(entries: Sequence[Mapping[str, Any]], sizes: Iterator[int]) -> Iterator[HistoryEntry]:
    for entry in entries:
        yield HistoryEntry(
            created_by=entry.get("created_by") or "",
            size=0 if entry.get("empty_layer") else next(sizes, 0),
            comment=entry.get("comment") or "",
        )


def sbom_of(stored: StoredImage) -> bytes | None:
    """Return the SBOM that stands in an image: in its last layer, which is fetched if small."""
    labels = (stored.config.get("config") or {}).get("Labels") or {}
    if f"{LABEL_PREFIX}version" not in labels or not stored.layers:
        return None
    last = stored.layers[-1]
    return read_member(last.open, SBOM_PATH) if last.descriptor.size <= MOST else None


def read_member(open_layer: Callable[[], BinaryIO], path: str) -> bytes | None:
    """Return a small file of a layer."""
    from mfimage.image.oci.compression import decompressed

    wanted = path.lstrip("/")
    try:
        with (
            open_layer() as file,
            decompressed(file) as plain,
            tarfile.open(fileobj=plain, mode="r|") as tar,
        ):
            for member in tar:
                if member.name.removeprefix("./") == wanted and member.size <= MOST:
                    content: IO[bytes] | None = tar.extractfile(member)
                    return content.read() if content else None
    except (tarfile.TarError, EOFError) as error:
        raise PackageError(f"a layer cannot be read: {error}") from None
    return None
