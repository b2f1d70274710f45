"""Runs examples at bind time, in a fresh interpreter, as the package will run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mfimage
from mfimage.errors import CaptureError, InputError
from mfimage.function import json as json_values
from mfimage.package.archive import unpack
from mfimage.package.spec import Example, FunctionSpec
from mfimage.package.store import PackageStore


def record_examples(
    spec: FunctionSpec, inputs: Sequence[Any], store: PackageStore
) -> tuple[Example, ...]:
    """Call a function with each example; return the examples with their results."""
    if not inputs:
        return ()
    lines = [
        json_values.dumps(record, root=f"examples[{index}]", error=InputError)
        for index, record in enumerate(inputs)
    ]
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        unpack(spec, store, Path(folder))
        outputs = _run(Path(folder), lines, spec.name)
    return tuple(
        Example(input=json_values.loads(line), output=output)
        for line, output in zip(lines, outputs, strict=True)
    )


def _run(folder: Path, lines: list[bytes], name: str) -> list[Any]:
    # The interpreter that binds has mfimage, maybe from a folder that only this process knows.
    home = str(Path(mfimage.__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "mfimage.runtime", "call"],
        input=b"\n".join(lines) + b"\n",
        capture_output=True,
        cwd=folder,  # not where the project's files are: the package must contain them
        env={**os.environ, "PYTHONPATH": path, "MFIMAGE_FUNCTION": str(folder)},
        check=False,
    )
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode == 0 and len(outputs) == len(lines):
        return outputs
    failed = lines[min(len(outputs), len(lines) - 1)].decode()
    story = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
    errors = [line.removeprefix("error: ") for line in story if line.startswith("error: ")]
    message = f"{name} failed on the example {failed[:200]}: {[story[-1], *errors][-1]}"
    hint = "correct the example or the function; its output:\n" + "\n".join(story[-20:])
    raise CaptureError(message, hint=hint)
