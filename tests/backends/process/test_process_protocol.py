"""Messages between a caller and its worker, and exceptions on the way."""

from __future__ import annotations

import json
import socket
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfimage import errors
from mfimage.errors import (
    Fault,
    FunctionError,
    InputError,
    MfimageError,
    OutputError,
    ParameterNotFound,
)
from mfimage.runtime.worker.exceptions import RemoteTraceback, describe, rebuild
from mfimage.runtime.worker.frames import (
    CALL,
    RESULT,
    Frame,
    ProtocolError,
    receive_frame,
    send_frame,
)

pytestmark = pytest.mark.slow

BIG = 10_000_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@settings(deadline=None)
@given(payloads=st.lists(st.binary(max_size=200_000), max_size=5), micros=st.integers(0, 1 << 40))
def test_frames(payloads: list[bytes], micros: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found: list[Frame] = []
        reader = threading.Thread(
            target=lambda: found.extend(receive_frame(theirs) for _ in payloads)
        )
        reader.start()
        for payload in payloads:
            rest = send_frame(ours, RESULT, payload, micros)
            assert not rest
        reader.join()
    kept = min(micros, (1 << 32) - 1)
    assert found == [Frame(RESULT, payload, kept) for payload in payloads]


def test_frame_in_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    whole, copy = socket.socketpair()
    with whole, copy:
        send_frame(whole, CALL, b"x" * 1000)
        data = copy.recv(2000)

    def drip() -> None:
        for start in range(0, len(data), 7):
            ours.sendall(data[start : start + 7])

    writer = threading.Thread(target=drip)
    writer.start()
    assert receive_frame(theirs) == Frame(CALL, b"x" * 1000)
    writer.join()


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 1015])
def test_connection_closed_within_a_message(
    pair: tuple[socket.socket, socket.socket], cut: int
) -> None:
    ours, theirs = pair
    send_frame(ours, CALL, b"x" * 1000)
    data = theirs.recv(2000)
    ours.sendall(data[:cut])
    ours.close()
    with pytest.raises(EOFError):
        receive_frame(theirs)


def test_bytes_that_are_not_a_message(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(b"hello, this is no message")
    with pytest.raises(ProtocolError):
        receive_frame(theirs)


def test_big_payload_is_never_copied_in_python(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    # The kernel copies it in and out: two copies in all.
    ours, theirs = pair
    payload = b"x" * BIG
    found: list[Frame] = []
    reader = threading.Thread(target=lambda: found.append(receive_frame(theirs)))
    tracemalloc.start()
    try:
        reader.start()
        send_frame(ours, CALL, payload)
        reader.join()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found[0].payload == payload
    assert peak < BIG + 200_000


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    cls=st.sampled_from([Exception, ValueError, KeyError, RuntimeError, StopIteration, OSError]),
    args=st.lists(PLAIN, max_size=3),
    state=st.dictionaries(st.text(min_size=1), PLAIN, max_size=2),
)
@example(cls=Exception, args=[], state={"__dict__": {}})
@example(cls=Exception, args=[1], state={"__class__": "x", "args": 2, "__cause__": 3})
@example(cls=StopIteration, args=[], state={"value": 1})
@example(cls=OSError, args=[2, "gone"], state={"filename": "x"})
def test_exceptions_of_plain_data(
    cls: type[Exception], args: list[Any], state: dict[str, Any]
) -> None:
    error = cls(*args)
    error.__dict__.update(state)
    found = rebuild(describe(error))
    assert type(found) is type(error)
    assert found.args == error.args
    assert vars(found) == vars(error)
    assert str(found) == str(error)
    assert isinstance(found.__cause__, RemoteTraceback)


OURS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type)
    and issubclass(each, MfimageError)
    and not issubclass(each, errors.ValueFault)
]


@pytest.mark.parametrize("cls", OURS)
def test_every_error_of_mfimage(cls: type[MfimageError]) -> None:
    found = rebuild(describe(cls("what 'was' wrong", hint="do this")))
    assert type(found) is cls
    assert isinstance(found, MfimageError)
    assert (found.message, found.hint, str(found)) == (
        *("what 'was' wrong", "do this"),
        "what 'was' wrong",
    )


@pytest.mark.parametrize("cls", [InputError, OutputError])
def test_faults(cls: type[errors.ValueFault]) -> None:
    faults = [Fault(path="data.a", message="missing"), Fault(path="data[1]", message="é")]
    found = rebuild(describe(cls(faults, hint="h")))
    assert isinstance(found, cls)
    assert found.faults == tuple(faults)
    assert found.message == "data.a: missing; data[1]: é"


class Strange(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Needy(Exception):
    """Cannot be made of its args."""

    def __init__(self, *, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __new__(cls, *args: Any, **kwargs: Any) -> Needy:
        assert not args
        return super().__new__(cls)

    def __str__(self) -> str:
        return f"because {self.reason}"


def test_exceptions_that_cannot_be_rebuilt_as_usual() -> None:
    needy = rebuild(describe(Needy(reason="of this")))
    assert isinstance(needy, Needy)
    assert (needy.reason, str(needy)) == ("of this", "because of this")
    assert isinstance(rebuild(describe(Strange())), FunctionError)
    assert isinstance(rebuild(describe(ValueError(10**5000))), Exception)
    loop: list[Any] = []
    loop.append(loop)
    assert isinstance(rebuild(describe(ValueError(loop))), ValueError)
    group = getattr(sys.modules["builtins"], "ExceptionGroup", None)
    if group is not None:
        found = rebuild(describe(group("several", [ValueError("a"), KeyError("b")])))
        assert "several" in str(found)
        assert "ValueError: a" in str(found.__cause__)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_exits_become_function_errors(error: BaseException) -> None:
    found = rebuild(describe(error))
    assert isinstance(found, FunctionError)
    assert type(found).__name__ == type(error).__name__


def test_classes_are_looked_up_and_nothing_else() -> None:
    before = set(sys.modules)
    for module, name in [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "object"),
        ("builtins", "SystemExit"),
        ("this", "Anything"),
        ("subprocess", "os.system"),
        ("nowhere", ""),
        ("builtins", ""),
        ("mfimage.errors", "MfimageError.__init__"),
    ]:
        plain = {"module": module, "name": name, "message": "m", "traceback": "t"}
        found = rebuild(json.dumps({**plain, "args": {"tuple": ["m"]}, "state": {}}).encode())
        assert isinstance(found, FunctionError)
    assert set(sys.modules) == before


@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["module", "name", "message", "traceback", "args", "state", "tuple"]
                ),
                inner,
            )
        ),
    ).map(lambda plain: json.dumps(plain).encode())
)
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    try:
        found = rebuild(data)
    except ValueError:
        return
    assert isinstance(found, Exception)


def test_nothing_here_unpickles() -> None:
    root = Path(errors.__file__).parent
    for name in ("worker/frames.py", "worker/exceptions.py", "worker/process.py"):
        assert "import pickle" not in (root / "runtime" / name).read_text()
    # Ray's own processes trust each other: https://docs.ray.io/en/latest/ray-security/
    ours = [path for path in (root / "backends").rglob("*.py") if path.parent.name != "ray"]
    assert len(ours) > 10
    for path in ours:
        assert "pickle" not in path.read_text(), path


def test_missing_parameter() -> None:
    found = rebuild(describe(ParameterNotFound("no parameter 'x'", hint="there are: y")))
    assert isinstance(found, KeyError)
    assert str(found) == "no parameter 'x'"
