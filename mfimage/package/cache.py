"""The user's cache folder: what takes time to get again, and may be deleted at any time."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mfimage.errors import OptionError

# Backups and code capture pass over a folder with this in it: https://bford.info/cachedir/
_TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55\n"
SIZE_VARIABLE = "MFIMAGE_CACHE_SIZE"
_DEFAULT_SIZE = "10GiB"
_SIZE = re.compile(r"(\d+)\s*(|[KMGT]i?B?|B)", re.IGNORECASE)
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def cache_folder() -> Path:
    """Return the user's cache folder: ``MFIMAGE_CACHE``, else ``mfimage`` in the usual place."""
    chosen = os.environ.get("MFIMAGE_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mfimage"


def tag(cache: Path) -> None:
    """Mark a cache folder, which is there, as one."""
    path = cache / _TAG
    if not path.exists():
        path.write_text(_SIGNATURE)


def cache_size() -> int:
    """Return how many bytes of blobs may stay: ``MFIMAGE_CACHE_SIZE``, else 10 GiB."""
    text = os.environ.get(SIZE_VARIABLE, "").strip() or _DEFAULT_SIZE
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OptionError(
            f"{SIZE_VARIABLE}: expected a size, got {text!r}",
            hint="write it as 500MB or 10GiB; 0 keeps nothing longer than it is used",
        )
    return int(match[1]) * _UNITS[match[2][:1].upper()]
