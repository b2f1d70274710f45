from __future__ import annotations

import copy
import pickle
import sys
import traceback
from collections.abc import Iterator

import pytest

from mfimage import errors
from mfimage.errors import Fault, InputError, MfimageError, ParameterNotFound, TaskError


def below(cls: type[MfimageError]) -> Iterator[str]:
    yield cls.__name__
    for each in cls.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from below(each)


@pytest.mark.parametrize("name", [*below(MfimageError)])
def test_errors_cross_processes_whole(name: str) -> None:
    cls = getattr(errors, name)
    faults = [Fault(path="data.age", message="expected int, got 'x'")]
    error = cls(faults if issubclass(cls, errors.ValueFault) else "what was wrong", hint="do this")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls
        assert (str(again), again.hint, vars(again)) == (str(error), "do this", vars(error))
        assert again.args == (error.message,)


def test_what_they_say() -> None:
    faults = [Fault(path="data.a", message="missing"), Fault(path="data.b", message="wrong")]
    assert str(InputError(faults)) == "data.a: missing; data.b: wrong"
    assert str(ParameterNotFound("no parameter 'x'")) == "no parameter 'x'", (
        "a KeyError would quote"
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracebacks have no notes yet")
def test_a_traceback_says_what_to_do() -> None:
    """As in a notebook, or in the log of a flow's step."""
    shown = "".join(traceback.format_exception_only(TaskError("it failed", hint="try again")))
    assert shown == "mfimage.errors.TaskError: it failed\nhint: try again\n"
