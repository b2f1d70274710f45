"""Starts ``_probe.py`` in an interpreter and waits for its answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mfimage
from mfimage.capture.code.locate import IMPORTING
from mfimage.errors import CaptureError

_PROBE = Path(__file__).with_name("_probe.py")
_TIMEOUT = 300
_NOTHING: Mapping[str, Any] = {"module": "", "functions": [], "run": False, "names": []}


class Probe(NamedTuple):
    """A fresh interpreter at work."""

    process: subprocess.Popen[bytes]
    folder: Path
    module: str

    def answer(self) -> dict[str, Any]:
        """Wait for it and return what it found.

        Raises
        ------
        CaptureError
            When it takes too long, or dies.
        """
        label = f"importing {self.module} in a fresh interpreter"
        try:
            code = self.process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise CaptureError(
                f"{label} took more than {_TIMEOUT} s",
                hint="move slow work out of the module's top level",
            ) from None
        answer = self.folder / "answer.json"
        if answer.is_file():
            return dict(json.loads(answer.read_bytes()))
        story = (self.folder / "output").read_bytes()[-4000:].decode(errors="replace").strip()
        died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise CaptureError(
            f"{label} ended without an answer ({died})",
            hint=f"it wrote:\n{story}" if story else "it wrote nothing",
        )


@contextmanager
def start_probe(python: str, request: Mapping[str, Any]) -> Iterator[Probe]:
    """Start the probe; it is over when the block is left.

    Parameters
    ----------
    python : str
        The interpreter.
    request : mapping
        ``root``, and what ``_NOTHING`` lists: the module, whether to run it, which of its
        functions are called, and names of other modules to find.
    """
    # The interpreter that binds has mfimage, maybe from a folder that only this process knows.
    home = str(Path(mfimage.__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="mfimage-") as text:
        folder = Path(text)
        asked, answer = folder / "request.json", folder / "answer.json"
        asked.write_text(json.dumps({**_NOTHING, **request, "path": [home]}))
        with (folder / "output").open("wb") as output:
            try:
                process = subprocess.Popen(
                    [python, str(_PROBE), str(asked), str(answer)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, IMPORTING: "1"},
                    start_new_session=True,
                )
            except OSError as error:
                raise CaptureError(f"cannot run {python}: {error.strerror}") from None
        try:
            yield Probe(process, folder, str(request.get("module", "")))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
