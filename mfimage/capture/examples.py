"""Runs examples at bind time, in a fresh interpreter, with what the package's environment has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mfimage
from mfimage.errors import CaptureError, InputError
from mfimage.function import json as json_values
from mfimage.package.archive import unpack
from mfimage.package.spec import Example, FunctionSpec
from mfimage.package.store import PackageStore


class Recorded(NamedTuple):
    """Examples, and modules that they need and the environment does not have -> why."""

    examples: tuple[Example, ...]
    needed: Mapping[str, str]


def record_examples(
    spec: FunctionSpec,
    inputs: Sequence[Any],
    store: PackageStore,
    *,
    outside: Mapping[str, str] = {},
) -> Recorded:
    """Call a function with each example, and keep the results.

    ``outside`` are modules that are here, and not in the function's environment -> their
    distribution; they are hidden, unless the function fails without them.
    """
    if not inputs:
        return Recorded((), {})
    lines = [
        json_values.dumps(record, root=f"examples[{index}]", error=InputError)
        for index, record in enumerate(inputs)
    ]
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        unpack(spec, store, Path(folder))
        calls = _Calls(Path(folder), lines, spec.name, outside)
        outputs, needed = calls.run()
    examples = (
        Example(input=json_values.loads(line), output=output)
        for line, output in zip(lines, outputs, strict=True)
    )
    return Recorded(tuple(examples), needed)


@dataclass(frozen=True)
class _Calls:
    folder: Path
    lines: list[bytes]
    name: str
    outside: Mapping[str, str]

    def run(self) -> tuple[list[Any], Mapping[str, str]]:
        """Return the results, and the modules that they need besides."""
        # The code may have modules of such a name itself.
        own = {path.name.partition(".")[0] for path in (self.folder / "code").iterdir()}
        hidden = self.outside.keys() - own - sys.stdlib_module_names
        try:
            return self._call(hidden)[0], {}
        except CaptureError as error:
            failure = error
        outputs, asked = self._call(frozenset())
        asked = {module: place for module, place in asked.items() if module in hidden}
        if not asked:
            raise failure
        needed = [module for module in asked if not self._works_without(module)]
        return outputs, {
            module: f"imported by {asked[module]} when an example ran" for module in needed or asked
        }

    def _works_without(self, module: str) -> bool:
        # Libraries try to import much that they can do without.
        try:
            self._call(frozenset({module}))
        except CaptureError:
            return False
        return True

    def _call(self, hidden: AbstractSet[str]) -> tuple[list[Any], dict[str, str]]:
        # The interpreter that binds has mfimage, maybe from a folder that only this process knows.
        home = str(Path(mfimage.__file__).parents[1])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        file = self.folder / "outside.json"
        file.write_text(json.dumps({"outside": dict(self.outside), "hidden": sorted(hidden)}))
        done = subprocess.run(
            [sys.executable, "-m", "mfimage.capture._calling", str(file)],
            input=b"\n".join(self.lines) + b"\n",
            capture_output=True,
            cwd=self.folder,  # not where the project's files are: the package must contain them
            env={**os.environ, "PYTHONPATH": path, "MFIMAGE_FUNCTION": str(self.folder)},
            check=False,
        )
        outputs = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode == 0 and len(outputs) == len(self.lines):
            return outputs, json.loads(file.read_bytes())
        failed = self.lines[min(len(outputs), len(self.lines) - 1)].decode()
        story = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        errors = [line.removeprefix("error: ") for line in story if line.startswith("error: ")]
        message = f"{self.name} failed on the example {failed[:200]}: {[story[-1], *errors][-1]}"
        hint = "correct the example or the function; its output:\n" + "\n".join(story[-20:])
        raise CaptureError(message, hint=hint)
