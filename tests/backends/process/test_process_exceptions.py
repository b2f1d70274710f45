"""What a function raises, as its caller gets it."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable

import pytest

from mfimage.backends.process.backend import ProcessBackend
from mfimage.errors import FunctionError
from mfimage.runtime.worker.exceptions import RemoteTraceback

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]


class Odd(Exception):
    """An exception of a module that is imported here, and that needs two arguments."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(f"{first} {second}")
        self.second = second


def test_exception_arrives_as_itself(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: str) -> dict:
            raise eval(data)
        """
    )
    for raised, expected in [
        ("ValueError('a', 1, None, (b'x', [2.5]))", ValueError("a", 1, None, (b"x", [2.5]))),
        ("KeyError('x')", KeyError("x")),
        ("FileNotFoundError(2, 'No such file', 'f')", FileNotFoundError(2, "No such file", "f")),
        (
            "UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'invalid start byte')",
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ),
        ("ZeroDivisionError('division by zero')", ZeroDivisionError("division by zero")),
    ]:
        with pytest.raises(type(expected)) as caught:
            predict(raised)
        assert type(caught.value) is type(expected)
        assert caught.value.args == expected.args
        assert str(caught.value) == str(expected)
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteTraceback)
        assert 'served.py", line' in str(cause)
        assert "runtime/worker" not in str(cause)


def test_exception_of_a_class_that_is_imported_here(run_process: Run) -> None:
    predict = run_process(
        f"""
        Odd = type("Odd", (Exception,), {{"__module__": {__name__!r}}})
        @json_function
        def predict(data: dict) -> dict:
            error = Odd("one 2")
            error.second, error.more = 2, object()
            error.add_note("a note") if hasattr(error, "add_note") else None
            raise error from KeyError("why")
        """
    )
    with pytest.raises(Odd, match="one 2") as caught:
        predict({})
    assert caught.value.second == 2
    assert not hasattr(caught.value, "more")
    assert "KeyError: 'why'" in str(caught.value.__cause__)
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["a note"]


def test_exception_of_a_class_that_is_not_here(run_process: Run) -> None:
    predict = run_process(
        """
        class Own(Exception): pass
        @json_function
        def predict(data: dict) -> dict:
            raise Own("mine")
        """
    )
    with pytest.raises(FunctionError, match=r"^mine$") as caught:
        predict({})
    assert traceback.format_exception_only(caught.value) == ["served.Own: mine\n"]
    assert "raise Own" in str(caught.value.__cause__)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again).__name__, str(again)) == ("Own", "mine")


def test_worker_cannot_make_its_caller_import(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: dict) -> dict:
            import antigravity_not_really
        """
    )
    with pytest.raises(ModuleNotFoundError, match="antigravity_not_really"):
        predict({})
    other = run_process(
        """
        import this as module
        class Error(Exception): pass
        Error.__module__ = "this"
        @json_function
        def predict(data: dict) -> dict:
            raise Error("x")
        """
    )
    with pytest.raises(FunctionError, match="x"):
        other({})
    assert "this" not in sys.modules


def test_exits_do_not_end_the_caller(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: str) -> int:
            if data:
                raise eval(data)
            return os.getpid()
        """
    )
    before = predict("")
    for raised in ("SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"):
        with pytest.raises(FunctionError) as caught:
            predict(raised)
        assert type(caught.value).__name__ == raised.partition("(")[0]
    assert predict("") == before
