"""How a build's files reach the engine: only those that it does not have from the last build.

The engine asks for a directory by name over the session; the files' names, modes, sizes and times
are told, and it requests the contents of what differs from its copy. See tonistiigi/fsutil,
``send.go``, and moby/buildkit, ``session/filesync``.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from mfimage.files import EPOCH
from mfimage.image.engine_grpc import DATA_LOSS, INTERNAL, INVALID_ARGUMENT, CallError, Metadata
from mfimage.image.engine_wire import encode_bytes, encode_int, fields
from mfimage.image.plan.files import ContextFile

_STAT, _REQUEST, _DATA, _FINISH, _ERROR = range(5)  # types of packets
_DIRECTORY = 1 << 31  # Go's os.ModeDir


class FileSync:
    """Sends a context's files; the handler of ``/moby.filesync.v1.FileSync/DiffCopy``.

    Parameters
    ----------
    files : iterable of ContextFile
        All of the context. It is sent as it is: a ``.dockerignore`` is not applied.
    """

    def __init__(self, files: Iterable[ContextFile]) -> None:
        self._files = {file.path: file for file in files}

    def __call__(self, metadata: Metadata, inbox: deque[bytes]) -> Iterator[bytes | None]:
        """Serve one transfer."""
        try:
            yield from self._transfer(metadata, inbox)
        except OSError as error:
            raise CallError(INTERNAL, f"cannot read {error.filename}: {error.strerror}") from None

    def _transfer(self, metadata: Metadata, inbox: deque[bytes]) -> Iterator[bytes | None]:
        # Which of the two names a pattern has depends on the engine's age.
        patterns = [*metadata.get("followpaths", ()), *metadata.get("include-patterns", ())]
        wanted = {path: file for path, file in self._files.items() if _asked_for(path, patterns)}
        requestable: dict[int, ContextFile] = {}
        for number, (path, file) in enumerate(_tree(wanted)):
            if file is not None:
                requestable[number] = file
            yield _packet(_STAT, stat=_stat(path, file))
        yield _packet(_STAT)  # no more files
        while True:
            while not inbox:
                yield None
            kind, number, data = _parse(inbox.popleft())
            if kind == _FINISH:
                yield _packet(_FINISH)
                return
            if kind == _ERROR:
                raise CallError(INVALID_ARGUMENT, data.decode(errors="replace"))
            if kind == _REQUEST and number in requestable:
                yield from _contents(number, requestable[number])


def _contents(number: int, file: ContextFile) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for chunk in file.chunks():
        hasher.update(chunk)
        yield _packet(_DATA, number=number, data=chunk)
    if file.digest not in {None, hasher.hexdigest()}:
        raise CallError(DATA_LOSS, f"{file.path} is damaged: its content does not fit its digest")
    yield _packet(_DATA, number=number)  # end of file


def _asked_for(path: str, patterns: list[str]) -> bool:
    """Tell whether a pattern covers a file: its name, a folder above it, or either by wildcards.

    The engine looks for the Dockerfile and the .dockerignore first, and then for what is copied.
    """
    return not patterns or any(_covers(PurePosixPath(each), path) for each in patterns)


def _covers(pattern: PurePosixPath, path: str) -> bool:
    wanted = [part for part in pattern.parts if part != "/"]
    parts = path.split("/")
    if "**" in wanted:
        return True  # sending too much does no harm
    return len(wanted) <= len(parts) and all(map(fnmatchcase, parts, wanted))


def _tree(files: Mapping[str, ContextFile]) -> list[tuple[str, ContextFile | None]]:
    """List files and (with None) their folders, in the order that the engine insists on."""
    tree: dict[str, ContextFile | None] = {}
    for path, file in files.items():
        for parent in PurePosixPath(path).parents[:-1]:
            tree[str(parent)] = None
        tree[path] = file
    return sorted(tree.items(), key=lambda entry: entry[0].split("/"))


def _stat(path: str, file: ContextFile | None) -> bytes:
    if file is None:
        mode, size, mtime = _DIRECTORY | 0o755, 0, EPOCH * 10**9
    else:
        mode, size, mtime = file.mode, file.size(), file.mtime_ns()
    stat = encode_bytes(1, path.encode()) + encode_int(2, mode)
    return stat + encode_int(5, size) + encode_int(6, mtime)


def _packet(kind: int, *, stat: bytes = b"", number: int = 0, data: bytes = b"") -> bytes:
    packet = encode_int(1, kind)
    if stat:
        packet += encode_bytes(2, stat)
    return packet + encode_int(3, number) + (encode_bytes(4, data) if data else b"")


def _parse(packet: bytes) -> tuple[int, int, bytes]:
    values = dict(fields(packet))
    kind, number, data = values.get(1, 0), values.get(3, 0), values.get(4, b"")
    if not (isinstance(kind, int) and isinstance(number, int) and isinstance(data, bytes)):
        raise CallError(INVALID_ARGUMENT, "malformed packet")
    return kind, number, data
