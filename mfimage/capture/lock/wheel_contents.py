"""Lists the files of a wheel from the end of the zip file, without downloading all of it."""

from __future__ import annotations

import contextlib
import http.client
import io
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mfimage.capture.code._reading import prefixes
from mfimage.capture.lock.indexes import authorization
from mfimage.capture.lock.pylock import LockedPackage

# The first is enough for nearly all wheels.
_TAIL, _LONG_TAIL = 1 << 18, 1 << 22
_TIMEOUT = 20


def wheel_files(
    package: LockedPackage, local: Mapping[str, Path], environment: Mapping[str, str]
) -> list[str] | None:
    """Return the files of a locked package; None when they cannot be read."""
    file = package.files[0]
    try:
        if file.name in local:
            names = zipfile.ZipFile(local[file.name]).namelist()
        else:
            names = _remote_files(file.url or "", environment)
    except (OSError, ValueError, zipfile.BadZipFile, http.client.HTTPException):
        return None
    return [_installed(name) for name in names]


def _remote_files(url: str, environment: Mapping[str, str]) -> list[str]:
    with contextlib.suppress(ValueError, zipfile.BadZipFile):
        return zipfile.ZipFile(io.BytesIO(_tail(url, _TAIL, environment))).namelist()
    return zipfile.ZipFile(io.BytesIO(_tail(url, _LONG_TAIL, environment))).namelist()


def _tail(url: str, size: int, environment: Mapping[str, str]) -> bytes:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} is not on a server")
    request = urllib.request.Request(url, headers={"Range": f"bytes=-{size}"})  # noqa: S310
    if login := authorization(url, environment):
        # Not sent on to where the index redirects.
        request.add_unredirected_header("Authorization", login)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:  # noqa: S310
        length = int(response.headers.get("Content-Length", size + 1))
        if length > size:
            raise OSError("the server does not support ranges")
        return bytes(response.read())


def _installed(name: str) -> str:
    """Return where a file of a wheel is installed, below ``site-packages``."""
    first, _, rest = name.partition("/")
    kind, _, inner = rest.partition("/")
    return inner if first.endswith(".data") and kind in ("purelib", "platlib") else name


def holds_module(files: Iterable[str], module: str) -> bool:
    """Return whether one of the files is a module, or the package that it is in."""
    paths = [name.replace(".", "/") for name in prefixes(module)]
    # A package or module has everything below it; several distributions may fill a bare folder.
    starts = [f"{path}{end}" for path in paths for end in ("/__init__.", ".")]
    return any(file.startswith((*starts, f"{paths[-1]}/")) for file in files)
