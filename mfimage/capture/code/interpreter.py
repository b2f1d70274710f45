"""A fresh interpreter that reports what a project's files import: it runs ``_probe.py``.

Most of its time goes into starting, listing what is installed, and importing Metaflow, which nearly
every function does. ``early_interpreter`` begins with that before it is known what to ask.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import mfimage
from mfimage.errors import CaptureError

# Set while mfimage imports a user's module, so that one that binds when it is imported does not
# bind forever.
IMPORTING = "MFIMAGE_IMPORTING"
_PROBE = Path(__file__).with_name("_probe.py")
_TIMEOUT = 300
_NOTHING: Mapping[str, Any] = {
    "module": "",
    "functions": [],
    "steps": [],
    "run": False,
    "names": [],
}
_waiting: list[Interpreter] = []


@contextmanager
def early_interpreter() -> Iterator[None]:
    """Start an interpreter now, for the first search in the block."""
    with _started(sys.executable, "metaflow") as interpreter:
        _waiting.append(interpreter)
        try:
            yield
        finally:
            _waiting.clear()


@contextmanager
def open_interpreter(python: str) -> Iterator[Interpreter]:
    """Yield an interpreter; it is stopped when the block is left."""
    if _waiting and python == sys.executable:
        yield _waiting.pop()
        return
    with _started(python) as interpreter:
        yield interpreter


@contextmanager
def _started(python: str, *ahead: str) -> Iterator[Interpreter]:
    # The interpreter that binds has mfimage, maybe from a folder that only this process knows.
    home = str(Path(mfimage.__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder, tempfile.TemporaryFile() as file:
        try:
            process = subprocess.Popen(
                [python, str(_PROBE), home, *ahead],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, IMPORTING: "1"},
                start_new_session=True,
            )
        except OSError as error:
            raise CaptureError(f"cannot run {python}: {error.strerror}") from None
        interpreter = Interpreter(process=process, output=file, ran_file=Path(folder, "ran.json"))
        with process:
            try:
                yield interpreter
            finally:
                if process.poll() is None:  # and what it started
                    os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """An interpreter that waits for a request."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]  # what the module writes to stdout and stderr
    ran_file: Path  # where the probe writes what it saw while the module was imported

    def ask(self, root: Path, request: Mapping[str, Any]) -> None:
        """Send the request; what it leaves out is as in ``_NOTHING``."""
        more = {"root": str(root), "answer": str(self.ran_file)}
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died, which `read` reports
            self.process.stdin.write(json.dumps({**_NOTHING, **request, **more}).encode())
            self.process.stdin.close()

    def read(self) -> dict[str, Any]:
        """Return what the source says."""
        assert self.process.stdout is not None
        found = self.process.stdout.read()
        return dict(json.loads(found)) if found else self._died("reading the project's source")

    def ran(self, module: str) -> dict[str, Any]:
        """Wait for the module's import; return what was seen."""
        label = f"importing {module} in a fresh interpreter"
        try:
            self.process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            hint = "move slow work out of the module's top level"
            raise CaptureError(f"{label} took more than {_TIMEOUT} s", hint=hint) from None
        if not self.ran_file.is_file():
            self._died(label)
        return dict(json.loads(self.ran_file.read_bytes()))

    def _died(self, label: str) -> NoReturn:
        code = self.process.wait()
        self.output.seek(0)
        output = self.output.read()[-4000:].decode(errors="replace").strip()
        died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        message = f"{label} ended without a result ({died})"
        raise CaptureError(message, hint=f"it wrote:\n{output}" if output else "it wrote nothing")
