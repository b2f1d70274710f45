"""Which classes and functions a pickle names: read by opcode, never run."""

from __future__ import annotations

import _compat_pickle
import functools
import gzip
import pickle
import pickletools
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from mfimage.errors import CaptureError

_PICKLE = re.compile(r"(gzip\+)?pickle-v\d+")


@dataclass(frozen=True, kw_only=True)
class StoredBytes:
    """An artifact's stored bytes."""

    encoding: str  # as in ``ArtifactRef``: ``gzip+pickle-v4``; only pickles name modules
    open: Callable[[], BinaryIO]  # for reading, from the start, at every call


@functools.lru_cache(maxsize=128)  # large ones take long to read
def named_globals(name: str, artifact: StoredBytes) -> frozenset[tuple[str, str]]:
    """Return the (module, qualified name) pairs that unpickling an artifact would look up."""
    if not _PICKLE.fullmatch(artifact.encoding):
        return frozenset()
    wanted: set[int] | None = None
    try:
        while True:
            with artifact.open() as stored:
                packed = artifact.encoding.startswith("gzip+")
                read = gzip.GzipFile(fileobj=stored).read if packed else stored.read
                reader = PickleReader(read, wanted)
                reader.read()
            if not reader.missing:
                return frozenset(reader.found)
            # The second reading remembers fewer strings, and may miss names that the first one had.
            if wanted is not None and reader.missing <= wanted:
                raise Unreadable("a name is not a string of the pickle")
            wanted = (wanted or set()) | reader.missing
    except (Unreadable, OSError, EOFError, zlib.error, ValueError) as error:
        message = f"artifact {name!r} is not a readable pickle: {error}"
        hint = "run the flow again, or leave the artifact out with artifacts=[...]"
        raise CaptureError(message, hint=hint) from None


_CHUNK = 1 << 20
_LONGEST_NAME = 1024
# Strings remembered in the first reading; a pickle with more is read twice.
_MEMO_LIMIT = 1 << 18


class Unreadable(Exception):
    """The bytes are not a pickle, or one whose names only running it would show."""


# Per opcode: a size to skip, or one of these.
_LINE, _LINES, _SIZED, _STRING, _NAMED = -1, -2, -3, -4, -5
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_UNKNOWN = -6
_SHORT_TEXT, _MEMOIZE, _BINGET = pickle.SHORT_BINUNICODE[0], pickle.MEMOIZE[0], pickle.BINGET[0]
_LONGEST_STEP = 2 + 255


class PickleReader:
    """One pass over a pickle, holding a chunk of it and the strings that may be names."""

    def __init__(self, read: Callable[[int], bytes], wanted: set[int] | None) -> None:
        self.found: set[tuple[str, str]] = set()
        # Memo entries that are names and were not remembered: read again with these.
        self.missing: set[int] = set()
        self._read = read
        # Which memo entries to remember; None for as many as fit.
        self._wanted = wanted
        self._data, self._position, self._before = b"", 0, 0
        self._protocol = 0
        self._memo: dict[int, bytes] = {}
        self._memoized = 0
        # The last two things pushed, while they are strings (or numbers of memo entries).
        self._last: bytes | int | None = None
        self._older: bytes | int | None = None

    def read(self) -> None:
        """Read up to STOP."""
        while True:
            self._run()
            kind = _KINDS[code := self._byte()]
            if kind == _UNKNOWN:
                raise Unreadable(f"unknown opcode {code:#04x} at byte {self._offset - 1}")
            if kind >= 0:
                self._last = None
                self._skip(kind)
            elif kind != _NAMED:
                self._variable(code, kind)
            elif code == _STOP:
                return
            else:
                _METHODS[code](self)

    def _run(self) -> None:
        """Read the opcodes that large pickles are full of, faster than ``read``, in the chunk."""
        data, position, memo = self._data, self._position, self._memo
        older, last, memoized = self._older, self._last, self._memoized
        end = len(data) - _LONGEST_STEP
        while position < end:
            code = data[position]
            if (size := _KINDS[code]) >= 0:
                position += 1 + size
                last = None
            elif code == _SHORT_TEXT:
                older, start = last, position + 2
                position = start + data[position + 1]
                last = data[start:position]
            elif code == _MEMOIZE and (last is None or self._wanted is None):
                position += 1
                if last.__class__ is bytes and len(memo) < _MEMO_LIMIT:
                    memo[memoized] = last
                memoized += 1
            elif code == _BINGET:
                older, last = last, memo.get(data[position + 1], data[position + 1])
                position += 2
            else:
                break
        self._position, self._memoized = position, memoized
        self._older, self._last = older, last

    @property
    def _offset(self) -> int:
        return self._before + self._position

    def _variable(self, code: int, kind: int) -> None:
        if kind == _LINE:
            self._line()
            self._last = None
            return
        argument = _OPCODES[code].arg
        assert argument is not None
        layout = _LENGTHS[argument.n]
        length = self._byte() if layout == "<B" else self._number(layout)
        if length < 0:
            raise Unreadable(f"negative length at byte {self._offset}")
        if kind == _STRING and length <= _LONGEST_NAME:
            self._push(self._take(length))
        else:
            self._skip(length)
            self._last = None

    def _stack_global(self) -> None:
        pair = self._older, self._last
        if any(value is None for value in pair):
            raise Unreadable(f"a name at byte {self._offset} is computed at run time")
        self.missing |= {value for value in pair if isinstance(value, int)}
        module, name = pair
        self._last = None
        if isinstance(module, bytes) and isinstance(name, bytes):
            self._note(module, name)

    def _extension(self) -> None:
        raise Unreadable(f"an extension code at byte {self._offset} stands for a name")

    def _unicode(self) -> None:
        self._push(self._line().decode("raw-unicode-escape").encode("utf-8", "surrogatepass"))

    def _proto(self) -> None:
        self._protocol = self._number("<B")

    def _note(self, raw_module: bytes, raw_name: bytes) -> None:
        module, name = raw_module.decode(), raw_name.decode()
        if self._protocol < 3:  # written by or for Python 2: mapped as the unpickler does
            both = _compat_pickle.NAME_MAPPING.get((module, name))
            module, name = both or (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        self.found.add((module, name))
        self._last = None

    def _push(self, value: bytes | int | None) -> None:
        self._older, self._last = self._last, value

    def _remember(self, index: int) -> None:
        self._memoized += 1
        if not isinstance(self._last, bytes):
            self._memo.pop(index, None)
        elif len(self._memo) < _MEMO_LIMIT if self._wanted is None else index in self._wanted:
            self._memo[index] = self._last

    def _recall(self, index: int) -> None:
        self._push(self._memo.get(index, index))

    def _byte(self) -> int:
        if self._position >= len(self._data):
            self._fill()
        self._position += 1
        return self._data[self._position - 1]

    def _fill(self) -> None:
        self._before += len(self._data)
        self._data, self._position = self._read(_CHUNK), 0
        if not self._data:
            raise Unreadable(f"it is cut off at byte {self._before}")

    def _take(self, count: int) -> bytes:
        taken = self._data[self._position : self._position + count]
        self._position += len(taken)
        while len(taken) < count:
            self._fill()
            self._position = min(count - len(taken), len(self._data))
            taken += self._data[: self._position]
        return taken

    def _skip(self, count: int) -> None:
        while count > (left := len(self._data) - self._position):
            count -= left
            self._position += left
            self._fill()
        self._position += count

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _line(self) -> bytes:
        """Return the rest of the line; of a long one, its start."""
        line = b""
        while (end := self._data.find(b"\n", self._position)) < 0:
            line = (line + self._data[self._position :])[:_LONGEST_NAME]
            self._position = len(self._data)
            self._fill()
        line += self._data[self._position : end]
        self._position = end + 1
        return line[:_LONGEST_NAME]


# One for each opcode that concerns names.
_BY_NAME: dict[str, Callable[[PickleReader], None]] = {
    "PROTO": PickleReader._proto,
    "FRAME": lambda reader: reader._skip(8),
    "MEMOIZE": lambda reader: reader._remember(reader._memoized),
    "PUT": lambda reader: reader._remember(int(reader._line())),
    "BINPUT": lambda reader: reader._remember(reader._byte()),
    "LONG_BINPUT": lambda reader: reader._remember(reader._number("<I")),
    "GET": lambda reader: reader._recall(int(reader._line())),
    "BINGET": lambda reader: reader._recall(reader._byte()),
    "LONG_BINGET": lambda reader: reader._recall(reader._number("<I")),
    "UNICODE": PickleReader._unicode,
    "GLOBAL": lambda reader: reader._note(reader._line(), reader._line()),
    "INST": lambda reader: reader._note(reader._line(), reader._line()),
    "STACK_GLOBAL": PickleReader._stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), PickleReader._extension),
}
_STOP = ord(".")
_METHODS = {code: _BY_NAME[op.name] for code, op in _OPCODES.items() if op.name in _BY_NAME}


def _kind(opcode: pickletools.OpcodeInfo) -> int:
    if opcode.name in _BY_NAME or opcode.name == "STOP":
        return _NAMED
    if opcode.arg is None:
        return 0
    if opcode.arg.n >= 0:
        return opcode.arg.n
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        return _LINE
    return _STRING if opcode.name in _TEXT else _SIZED


_KINDS = [_kind(_OPCODES[code]) if code in _OPCODES else _UNKNOWN for code in range(256)]
