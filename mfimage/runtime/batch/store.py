"""The files of a batch job: on this machine, or in s3://, gs:// and azure:// buckets."""

from __future__ import annotations

import os
import re

from mfimage.errors import OptionError
from mfimage.package.storage.objects import ObjectInfo, Objects

_REMOTE = re.compile(r"(s3|s3a|gs|az|azure|abfs|abfss)://([^/]+)(/.*)?")
_WILD = re.compile(r"[*?\[]")


def locate(url: str) -> tuple[Objects, str]:
    """Return the store and the key of a URL or path."""
    remote = _REMOTE.fullmatch(url)
    if remote:
        scheme, bucket, path = remote.groups()
        if "@" in bucket and ":" in bucket.partition("@")[0]:
            raise OptionError(
                f"a {scheme}:// URL has a password in it",
                hint="set credentials in the store's own variables",
            )
        return Objects(f"{scheme}://{bucket}/"), (path or "/")[1:]
    if "://" in url and not url.startswith("file://"):
        raise OptionError(
            f"{url}: unknown scheme {url.partition('://')[0]}://",
            hint="use a path, s3://, gs:// or azure://",
        )
    path = os.path.abspath(url.removeprefix("file://"))  # noqa: PTH100  (keeps links)
    return Objects("/"), path[1:]


def find_inputs(url: str, suffixes: tuple[str, ...]) -> list[ObjectInfo]:
    """Return the file, the files below the folder, or those of the pattern that a URL names."""
    # ``*``, ``?``, ``[a-z]`` and ``[!a-z]`` match anything but ``/``; ``**`` matches ``/``, too. Of
    # a folder, files with these suffixes are taken, unless their path has a name that starts with
    # ``_`` or ``.``.
    store, key = locate(url)
    wild = _WILD.search(key)
    if wild and store.stat(key) is None:  # a file may have that exact name
        pattern = _pattern(store.url(key))
        folder = key[: wild.start()].rpartition("/")[0]
        found = [file for file in store.list(folder) if pattern.fullmatch(file.url)]
    elif key and not url.endswith("/") and (single := store.stat(key)) is not None:
        found = [single]
    else:
        below = store.url(key.rstrip("/"))
        found = [
            file
            for file in store.list(key)
            if file.url.endswith(suffixes) and not _hidden(file.url.removeprefix(below))
        ]
    if not found:
        raise OptionError(
            f"input: there are no files at {url}",
            hint=f"name a file, a pattern, or a folder with files in {' or '.join(suffixes)}",
        )
    return found


def _hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/") if part)


def _pattern(text: str) -> re.Pattern[str]:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def piece(part: str) -> str:
        if part.startswith("[") and part.endswith("]"):
            inner = part[1:-1].replace("\\", r"\\")
            return f"(?!/)[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        return wild.get(part) or re.escape(part)

    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", text)
    return re.compile("".join(map(piece, parts)))
