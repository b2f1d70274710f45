"""A build's progress on a real terminal: a pseudo-terminal, its size, its signals."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # a process each
    # Python 3.12 and later warn of a fork beside pytest-xdist's thread; exec follows at once.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

# A build by events: three layers one after another, two pushes at once.
BUILD = r"""
import sys, threading, time
import mfimage.build
from types import SimpleNamespace as Any
from mfimage.cli import main
from mfimage.image.builder import BuildEvent as Event

def build(references, options, *, on_event, note, **_):
    slow = references[0] == "slow"
    note("base: python:3.11-slim, from the Docker engine \x1b[2J")
    total = 600 * 10**6 if slow else 4 * 10**6
    for name in ("dependencies", "artifact:\x1b[31mmodel", "code"):
        on_event(Event(kind="started", step=name))
        for done in range(600 if slow and name == "dependencies" else 3):
            time.sleep(0.05)
            on_event(Event(kind="progress", step=name, current=done * 10**6, total=total))
        on_event(Event(kind="done", step=name, seconds=1.25, total=52_400_000))
    for name in ("push 0123456789ab", "push ba9876543210"):
        on_event(Event(kind="progress", step=name, current=10**6, total=187 * 10**6))
    time.sleep(0.15)
    on_event(Event(kind="done", step="push 0123456789ab", total=187_000_000))
    on_event(Event(kind="cached", step="push ba9876543210", total=187_000_000, spared=187_000_000))
    cached = {"base": True, "dependencies": True, "code": False}
    layers = [Any(name=name, cached=is_cached) for name, is_cached in cached.items()]
    return Any(name="iris:1", images=[Any(layers=layers)], to_dict=dict)

mfimage.build.build = build
mfimage.package.store.open_package = lambda *_: None
main(["build", *sys.argv[1:]])
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Those of the tests' own terminal; pytest-xdist sets COLUMNS.
SETTINGS = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES")
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def on_terminal(
    folder: Path, *arguments: str, width: int = 100, env: dict[str, str] | None = None,
    act: Callable[[int, int, str], bool] = lambda *_: True,
) -> tuple[str, int]:  # fmt: skip
    """Run a build on a terminal; return what it wrote there, and its exit code.

    ``act`` is called with the process, the terminal and what was written, until it returns True.
    """
    script = folder / "build.py"
    script.write_text(BUILD)
    child, terminal = pty.fork()
    if child == 0:
        kept = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        wanted = {**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})}
        os.execve(sys.executable, [sys.executable, str(script), *arguments], wanted)
    resize(terminal, width)
    written, acted, end = "", False, time.monotonic() + 30
    try:
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.05)[0]:
                try:
                    data = os.read(terminal, 1 << 16)
                except OSError:  # the other side is closed
                    break
                written += data.decode(errors="replace")
            acted = acted or act(child, terminal, written)
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    return written, os.waitstatus_to_exitcode(status)


def resize(terminal: int, width: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))


def rows(written: str) -> list[str]:
    """Return all lines that were ever shown, without escape sequences."""
    moves = ESCAPE.sub(lambda match: "" if match[0].endswith("m") else "\n", written)
    return [line for line in re.split(r"[\r\n]+", moves) if line.strip()]


def test_a_build_on_a_terminal(tmp_path: Path) -> None:
    written, code = on_terminal(tmp_path, "quick")
    assert code == 0
    lines = [" ".join(line.split()) for line in ESCAPE.sub("", written).splitlines()]
    assert "✓ dependencies 52 MB 1.2 s" in lines
    assert r"✓ artifact:\x1b[31mmodel 52 MB 1.2 s" in lines
    assert "✓ push ba9876543210 187 MB cached" in lines
    assert "base: python:3.11-slim, from the Docker engine \\x1b[2J" in lines
    [summary] = [line for line in lines if line.startswith("built in")]
    assert re.fullmatch(r"built in \d\.\d s; 1 of 2 layers from cache, 187 MB not sent", summary)
    assert lines[-1] == "iris:1"
    shown = rows(written)
    assert any("dependencies" in row and "━" in row and "of 4.0 MB" in row for row in shown)
    assert written.count(SHOW_CURSOR) == written.count(HIDE_CURSOR) == 1
    assert "\x1b[2J" not in written
    assert "\x1b[3" in written  # colors


@pytest.mark.parametrize("when", [HIDE_CURSOR, "of 600 MB"])
def test_ctrl_c_leaves_a_clean_line(tmp_path: Path, when: str) -> None:
    """Also while the bars are being set up: the cursor is hidden by then."""

    def act(child: int, terminal: int, written: str) -> bool:
        if when not in written:
            return False
        os.write(terminal, b"\x03")
        return True

    written, code = on_terminal(tmp_path, "slow", act=act)
    assert code == 130
    after = written[written.rindex(SHOW_CURSOR) :]
    lines = [line.strip() for line in ESCAPE.sub("", after).splitlines()]
    assert [line for line in lines if line] == ["interrupted"]
    # The bar's line was erased after it was last drawn.
    assert "\x1b[2K" in written[max(written.rfind("of 600 MB"), 0) :]
    assert "Traceback" not in written


@pytest.mark.parametrize("width", [40, 200])
def test_rows_fit_after_a_resize(tmp_path: Path, width: int) -> None:
    at = 0

    def act(child: int, terminal: int, written: str) -> bool:
        nonlocal at
        if not at and "of 600 MB" in written:
            resize(terminal, width)
            os.kill(child, signal.SIGWINCH)
            at = len(written)
        if at and len(rows(written[at:])) > 12:
            os.write(terminal, b"\x03")
            return True
        return False

    written, code = on_terminal(tmp_path, "slow", act=act)
    assert code == 130
    settled = rows(written[at:])[3:]
    assert any("dependencies" in row for row in settled)
    assert max(map(len, settled)) <= min(width, 120)


def test_no_color(tmp_path: Path) -> None:
    written, code = on_terminal(tmp_path, "quick", env={"NO_COLOR": "1"})
    assert code == 0
    assert "━" in written
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", written)


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_an_old_encoding(tmp_path: Path, env: dict[str, str]) -> None:
    written, code = on_terminal(tmp_path, "quick", env={"LANG": "C", **env})
    assert code == 0
    assert written.isascii()
    assert "* dependencies" in ESCAPE.sub("", written)


def test_a_dumb_terminal_has_plain_lines(tmp_path: Path) -> None:
    written, code = on_terminal(tmp_path, "quick", env={"TERM": "dumb"})
    assert code == 0
    assert "\x1b" not in written
    assert written.splitlines() == [
        "base: python:3.11-slim, from the Docker engine \\x1b[2J",
        "dependencies  1.2 s",
        "artifact:\\x1b[31mmodel  1.2 s",
        "code  1.2 s",
        "push 0123456789ab",
        "push ba9876543210  cached",
        "iris:1",
    ]
