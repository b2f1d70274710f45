"""The opcode reader: what it finds is what unpickling would import, and nothing ever runs."""

from __future__ import annotations

import array
import collections
import datetime
import enum
import gzip
import io
import os
import pickle
import pickletools
import tracemalloc
import uuid
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage.capture.task import pickles
from mfimage.capture.task.pickles import StoredBytes, named_globals
from mfimage.errors import CaptureError


def named_modules(name: str, artifact: StoredBytes) -> set[str]:
    return {module for module, _ in named_globals(name, artifact)}


class Colour(enum.Enum):
    RED = 1


class Point:
    class Inner:
        pass

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    def __hash__(self) -> int:
        return 0


def stored(data: bytes, encoding: str = "pickle-v4") -> StoredBytes:
    return StoredBytes(encoding=encoding, open=lambda: io.BytesIO(data))


class Spy(pickle.Unpickler):
    """Unpickles, and notes what it looked up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.found: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        value = super().find_class(module, name)
        self.found.append(value)
        return value


def resolve(module: str, name: str) -> Any:
    value: Any = __import__(module, fromlist=["*"])
    for part in name.split("."):
        value = getattr(value, part)
    return value


CLASSES = [Colour, Point, Point.Inner, collections.Counter, collections.deque, os.path.join]
LEAVES = st.one_of(
    st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=300),
    st.binary(max_size=300),
    st.sampled_from(["collections", "OrderedDict", "builtins", "uuid", "numpy"]),
    st.sampled_from([Colour.RED, Point, Point.Inner, os.path.join, len, range(3), slice(1, 2)]),
    st.sampled_from([ValueError("x"), collections.Counter("abc"), PurePosixPath("/a")]),
    st.sampled_from([bytearray(b"x" * 400), array.array("d", [1.0, 2.0]), frozenset({1})]),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.datetimes(),
    st.timedeltas(),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.tuples(inner, inner),
        st.builds(Point, inner),
        st.builds(lambda value: collections.OrderedDict(a=value, b=value), inner),
        st.builds(lambda value: [value, value], inner),
    ),
    max_leaves=15,
)


@given(
    value=VALUES,
    protocol=st.integers(0, 5),
    optimized=st.booleans(),
    runs=st.booleans(),
    limit=st.sampled_from([0, 2, 99]),
)
def test_the_names_found_are_those_that_unpickling_looks_up(
    value: Any, protocol: int, optimized: bool, limit: int, runs: bool
) -> None:
    data = pickle.dumps(value, protocol)
    data = pickletools.optimize(data) if optimized else data
    # What follows STOP is not read; so far from the end, opcodes are taken in runs.
    data += bytes(400 if runs else 0)
    spy = Spy(data)
    spy.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pickles, "_MEMO_LIMIT", limit)
        found = {id(resolve(*pair)) for pair in named_globals("a", stored(data))}
    assert found == {id(each) for each in spy.found}


def test_names_from_before_and_after_the_memo_was_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MEMO_LIMIT", 2)
    early_again = [Point, collections.OrderedDict, Colour, collections.Counter]
    found = named_globals("a", stored(pickle.dumps(early_again, 4)))
    assert {name for _, name in found} == {"Point", "OrderedDict", "Colour", "Counter"}


@given(value=VALUES, protocol=st.integers(0, 5), chunk=st.integers(1, 40))
def test_chunks_may_end_anywhere(value: Any, protocol: int, chunk: int) -> None:
    data = pickle.dumps(value, protocol)
    whole = named_globals("a", stored(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pickles, "_CHUNK", chunk)
        assert named_globals("a", stored(data)) == whole


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_no_names_but_no_crash(data: bytes) -> None:
    try:
        named_globals("a", stored(data))
    except CaptureError as error:
        assert "artifact 'a' is not a readable pickle" in str(error)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_read_and_never_run(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(Evil(tmp_path / "ran"), protocol)
    assert named_modules("a", stored(gzip.compress(data), "gzip+pickle-v4")) == {"posix"}
    assert not (tmp_path / "ran").exists()


def test_instances_of_old_classes_are_found() -> None:
    assert named_globals("a", stored(b"(icollections\nCounter\n.")) == {("collections", "Counter")}
    assert named_globals("a", stored(b"(i__builtin__\nset\n.")) == {("builtins", "set")}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is cut off at byte 0"),
        (pickle.dumps([1, 2, 3])[:-1], "it is cut off at byte"),
        (b"\x80\x04\xff.", "unknown opcode 0xff at byte 2"),
        (b"\x80\x04\x8c\x02osN\x93.", "is computed at run time"),
        (b"\x80\x02\x82\x01.", "extension code"),
        (b"T\xff\xff\xff\xff.", "negative length"),
    ],
)
def test_what_cannot_be_read_names_the_artifact(data: bytes, message: str) -> None:
    with pytest.raises(CaptureError, match="artifact 'model' is not a readable pickle") as caught:
        named_modules("model", stored(data))
    assert message in str(caught.value)


def test_a_broken_compression_names_the_artifact() -> None:
    data = gzip.compress(pickle.dumps([datetime.date(2026, 1, 1)]))
    for broken in (data[:-12], b"no gzip", data[:20] + b"\0\0\0" + data[23:]):
        with pytest.raises(CaptureError, match="'model'"):
            named_modules("model", stored(broken, "gzip+pickle-v4"))


def test_other_serializations_name_nothing() -> None:
    assert named_modules("a", stored(b"\xff", "arrow")) == set()


class Zeros(io.RawIOBase):
    """A pickle of one huge bytes object, made while it is read."""

    def __init__(self, size: int) -> None:
        head = b"\x80\x04\x8e" + size.to_bytes(8, "little")
        self.parts = [head, *[bytes(1 << 20)] * (size >> 20), b"0cuuid\nUUID\n."]

    def read(self, size: int = -1) -> bytes:
        return self.parts.pop(0) if self.parts else b""


def test_memory_stays_bounded() -> None:
    def huge() -> BinaryIO:
        return Zeros(512 << 20)  # type: ignore[return-value]

    tracemalloc.start()
    try:
        found = named_globals("a", StoredBytes(encoding="pickle-v4", open=huge))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert found == {("uuid", "UUID")}
    assert isinstance(uuid.uuid4(), resolve("uuid", "UUID"))
