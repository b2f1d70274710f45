"""What cannot be imported, and what is said of it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from mfimage.capture.code import interpreter as fresh
from mfimage.errors import CaptureError, LockError, MfimageError
from tests.capture.projects import find, write
from tests.capture.wheelhouse import Interpreter


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import numeric\nimport nowhere", LockError, "at predict.py:2: No module named 'nowhere'"),
        ("from numeric import nothing", LockError, "cannot import name 'nothing'"),
        ("def f():\n  import nowhere", LockError, "not installed here (imported by predict.py:2)"),
        ("x = 1\nx.y", CaptureError, "failed at predict.py:2: AttributeError"),
        ("def f(:", CaptureError, "failed at predict.py:1: SyntaxError"),
        ("x = 1\nraise SystemExit", CaptureError, "predict ends the program at predict.py:2"),
        ("import os\nos.kill(os.getpid(), 11)", CaptureError, "SIGSEGV"),
        ("input()", CaptureError, "EOFError"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(
    interpreter: Interpreter, root: Path, code: str, kind: type[MfimageError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        find(interpreter, root, code).distributions()
    assert message in caught.value.message
    assert caught.value.hint


def test_a_port_that_the_module_opens_when_it_is_imported(
    interpreter: Interpreter, root: Path
) -> None:
    """It is imported here and in a fresh interpreter at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_server({server.getsockname()})\n"
        with pytest.raises(CaptureError, match=r"predict\.py:2: OSError") as caught:
            find(interpreter, root, code)
    assert "open ports in a function" in str(caught.value.hint)


def test_a_module_that_no_distribution_has(
    interpreter: Interpreter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root.parent / "stray", {"stray.py": ""})
    monkeypatch.setenv("PYTHONPATH", str(root.parent / "stray"))
    with pytest.raises(
        LockError, match=r"stray belongs to no installed distribution .*predict.py:1"
    ):
        find(interpreter, root, "import stray\n").distributions()


def test_a_class_in_a_pickle_that_is_not_installed(interpreter: Interpreter, root: Path) -> None:
    with pytest.raises(
        LockError, match=r"xgb.core is not installed here .*pickle of artifact 'model'"
    ):
        find(interpreter, root, artifacts={"model": b"cxgb.core\nBooster\n."}).distributions()


def test_an_imported_file_that_is_not_included(interpreter: Interpreter, root: Path) -> None:
    write(root, {"left_out.py": ""})
    with pytest.raises(CaptureError, match=r"left_out.py is imported, and is not included"):
        find(interpreter, root, "import left_out\n")


def test_a_module_that_hangs_is_ended_with_what_it_started(
    interpreter: Interpreter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "_TIMEOUT", 0.7)
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(root / "pid")!r}, "w").write(str(child.pid))
        time.sleep(60)
    """
    with pytest.raises(CaptureError, match=r"took more than 0.7 s"):
        find(interpreter, root, code)
    child = int((root / "pid").read_text())
    deadline = time.monotonic() + 5
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False
