"""Which classes and functions a pickle names, read by opcode; nothing of it is ever run."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from mfimage.capture.pickle_reader import PickleReader, Unreadable
from mfimage.errors import CaptureError

_PICKLE = re.compile(r"(gzip\+)?pickle-v\d+")


@dataclass(frozen=True, kw_only=True)
class StoredBytes:
    """An artifact's stored bytes.

    Attributes
    ----------
    encoding : str
        As in ``ArtifactRef``: ``gzip+pickle-v4``. Only pickles name modules.
    open : callable
        Opens them for reading, from the start, each time it is called.
    """

    encoding: str
    open: Callable[[], BinaryIO]


def named_modules(name: str, artifact: StoredBytes) -> set[str]:
    """Return the modules that unpickling an artifact would import.

    Raises
    ------
    CaptureError
        When it is damaged, or the names in it are not to be had without running it.
    """
    return {module for module, _ in named_globals(name, artifact)}


def named_globals(name: str, artifact: StoredBytes) -> set[tuple[str, str]]:
    """Return what unpickling an artifact would look up, as (module, qualified name)."""
    if not _PICKLE.fullmatch(artifact.encoding):
        return set()
    wanted: set[int] | None = None
    try:
        while True:
            with artifact.open() as stored:
                reader = PickleReader(_plain(stored, artifact.encoding), wanted)
                reader.read()
            if not reader.missing:
                return reader.found
            # The first reading knew those names that the second, which remembers less, misses.
            if wanted is not None and reader.missing <= wanted:
                raise Unreadable("a name is not a string of the pickle")
            wanted = (wanted or set()) | reader.missing
    except (Unreadable, OSError, EOFError, zlib.error, ValueError) as error:
        raise CaptureError(
            f"artifact {name!r} is not a readable pickle: {error}",
            hint="run the flow again, or leave the artifact out with artifacts=[...]",
        ) from None


def _plain(stored: BinaryIO, encoding: str) -> Callable[[int], bytes]:
    if encoding.startswith("gzip+"):
        return gzip.GzipFile(fileobj=stored).read
    return stored.read
