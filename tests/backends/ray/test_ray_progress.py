"""What a terminal shows of a map on a cluster."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr

import pytest

from mfimage.backends.ray import backend
from mfimage.backends.ray.backend import with_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(backend, "_BAR_AFTER_SECONDS", 0)
    monkeypatch.setattr(backend, "_BAR_EVERY_SECONDS", 0)


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stderr(Terminal()) as terminal:
        for number in with_progress("predict", iter(range(150)), 300):
            print(number)
    assert "predict: 120 done" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "it is gone in the end"
    assert capsys.readouterr().out.split() == [str(number) for number in range(150)]


def test_a_loop_that_is_left_leaves_nothing() -> None:
    with redirect_stderr(Terminal()) as terminal:
        results = with_progress("predict", iter(range(10)), None)
        assert [next(results) for _ in range(5)] == list(range(5))
        shown, hidden = (terminal.getvalue().rindex(f"\x1b[?25{end}") for end in "hl")
        assert shown > hidden, "the cursor is there"
        results.close()
        assert sys.stderr is terminal
        assert list(with_progress("again", iter([1, 2]), None)) == [1, 2]
    assert "again: 1 done" in terminal.getvalue()


def test_one_bar_at_a_time() -> None:
    with redirect_stderr(Terminal()) as terminal:
        for _ in with_progress("outer", iter(range(3)), None):
            assert list(with_progress("inner", iter(range(3)), None)) == [0, 1, 2]
    assert "outer" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()


def test_none_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(with_progress("predict", iter(range(3)), 3)) == [0, 1, 2]


def test_none_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress("predict", iter(range(3)), 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
