"""Every kind of place a function can stand in: projects, and how each binds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEAD = "from metaflow import FunctionParameters, JsonFunction, Task, json_function\n"
# A typed subclass, a default that the flow overrides, one that it has not.
FUNCTION = """
class Needs(FunctionParameters):
    labels: list
    threshold: float = 0.1
    bonus: int = 5

@json_function
def predict(data: dict, params: Needs) -> dict:
    '''Say which.'''
    return {"label": params.labels[data["x"]] + SUFFIX, "sum": params.threshold + params.bonus}

"""
SUFFIX = "SUFFIX = '!'\n"
WHOLE = HEAD + SUFFIX + FUNCTION
WITH_HELPER = f"{HEAD}from helper import SUFFIX\n{FUNCTION}"
HELPER = {"helper.py": SUFFIX}
RECORD, EXPECTED = {"x": 2}, {"label": "virginica!", "sum": 5.5}

# The test puts the pathspec of a real task here.
TASK = "<the task>"
BIND = f"print(JsonFunction(predict, task={TASK!r}).reference)\n"
GUARDED = f"if __name__ == '__main__':\n    {BIND}"
IN_MAIN = f"def main():\n    {BIND}"
BY_VALUE = "_bound_function:predict"


def binds(module: str, name: str = "predict") -> dict[str, str]:
    """A script that imports a function and binds it."""
    return {"b.py": f"{HEAD}from {module} import {name} as predict\n{BIND}"}


# Cells of a notebook: a __main__ without a file, each cell in a file that does not exist.
CELLS = [HEAD, "from helper import SUFFIX", FUNCTION, BIND]
NOTEBOOK = f"""
import linecache, os, sys
__main__ = sys.modules["__main__"]
del __main__.__file__
for number, cell in enumerate({CELLS!r}):
    name = f"/tmp/ipykernel_{{os.getpid()}}/{{number}}.py"
    linecache.cache[name] = len(cell), None, cell.splitlines(True), name
    exec(compile(cell, name, "exec"), vars(__main__))
"""
NESTED = "def make(SUFFIX):\n" + textwrap.indent(FUNCTION, "    ") + "    return predict\n"

FLOW = (Path(__file__).parent / "flows" / "train.py").read_text()
SCALED = """
@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"scaled": params.scaler.scale(data["x"]), "kind": type(params.scaler).__name__}

"""
# Without what runs the flow: the test's own guard stands there.
FLOW_WITH = HEAD + FLOW.partition("if __name__")[0] + SCALED
SCALE = {"scaled": 6, "kind": "Scaler"}

PACKAGE = {
    "pkg/__init__.py": "",
    "pkg/constants.py": "from pathlib import Path\n"
    "SUFFIX = Path(__file__).with_name('data').joinpath('suffix.txt').read_text()\n",
    "pkg/data/suffix.txt": "!",
    "pkg/inner/__init__.py": "from ..constants import SUFFIX\n",
    "pkg/inner/model.py": f"{HEAD}from . import SUFFIX\n{FUNCTION}{GUARDED}",
}


@dataclass(frozen=True)
class Place:
    """A project, and how it binds.

    Attributes
    ----------
    files : mapping of str to str
        The project.
    command : list of str
        What Python runs in its folder; it prints the reference.
    entrypoint : str
        What the package then says.
    """

    files: Mapping[str, str]
    command: list[str]
    entrypoint: str
    expected: Any = field(default_factory=lambda: EXPECTED)
    stdin: str = ""


PLACES = {
    "module": Place(
        {"predict.py": WITH_HELPER, **HELPER, **binds("predict")}, ["b.py"], "predict:predict"
    ),
    "another version of it": Place(
        {"predict.py": WITH_HELPER, "helper.py": "SUFFIX = '?'\n", **binds("predict")},
        ["b.py"], "predict:predict", {**EXPECTED, "label": "virginica?"},
    ),
    "another name": Place(
        {"m.py": WHOLE.replace("@json_function\n", "") + "serve = json_function(predict)\n",
         **binds("m", "serve")},
        ["b.py"], "m:serve",
    ),
    "package": Place(
        {**PACKAGE, **binds("pkg.inner.model")}, ["b.py"], "pkg.inner.model:predict"
    ),
    "package, run as a module": Place(
        PACKAGE, ["-m", "pkg.inner.model"], "pkg.inner.model:predict"
    ),
    "folder, run as a module": Place(
        {"ns/helper.py": SUFFIX,
         "ns/go.py": WITH_HELPER.replace("from helper", "from ns.helper") + GUARDED},
        ["-m", "ns.go"], "ns.go:predict",
    ),
    "script in a package": Place(
        {"pkg/__init__.py": "", "pkg/helper.py": SUFFIX, "pkg/s.py": WITH_HELPER + GUARDED},
        ["pkg/s.py"], "s:predict",
    ),
    "flow's own file, run as a script": Place(
        {"train.py": FLOW_WITH + GUARDED}, ["train.py"], "train:predict", SCALE
    ),
    "flow's own file, imported": Place(
        {"train.py": FLOW_WITH, **binds("train")}, ["b.py"], "train:predict", SCALE
    ),
    "beside the flow": Place(
        {"train.py": FLOW, "predict.py": HEAD + SCALED, **binds("predict")},
        ["b.py"], "predict:predict", SCALE,
    ),
    "flow in a folder below": Place(
        {"flows/train.py": FLOW, "predict.py": HEAD + SCALED, **binds("predict")},
        ["b.py"], "predict:predict", SCALE,
    ),
    "flow beside a command": Place(
        {"train.py": FLOW}, ["-c", HEAD + SCALED + BIND], BY_VALUE, SCALE
    ),
    "guarded script": Place(
        {"my-script.py": WHOLE + GUARDED}, ["my-script.py"], "my-script:predict"
    ),
    "guarded call of main": Place(
        {"s.py": f"{WHOLE}{IN_MAIN}if __name__ == '__main__': main()\n"}, ["s.py"], "s:predict"
    ),
    "unguarded script": Place({"s.py": WHOLE + BIND}, ["s.py"], BY_VALUE),
    "unguarded call of main": Place({"s.py": f"{WHOLE}{IN_MAIN}main()\n"}, ["s.py"], BY_VALUE),
    "unguarded script, helper as module": Place(
        {"s.py": f"{HEAD}import helper\n{FUNCTION.replace('SUFFIX', 'helper.SUFFIX')}{BIND}",
         **HELPER},
        ["s.py"], BY_VALUE,
    ),
    "unguarded script, helper imported late": Place(
        {"s.py": HEAD + FUNCTION.replace("    return", "    from helper import SUFFIX\n    return")
         + BIND, **HELPER},
        ["s.py"], BY_VALUE,
    ),
    "command": Place({}, ["-c", WHOLE + BIND], BY_VALUE),
    "stdin": Place(HELPER, ["-"], BY_VALUE, stdin=WITH_HELPER + BIND),
    "prompt": Place(HELPER, ["-i", "-q"], BY_VALUE, stdin=WITH_HELPER + BIND),
    "notebook": Place({"cells.py": NOTEBOOK, **HELPER}, ["cells.py"], BY_VALUE),
    "command, nested": Place(
        {}, ["-c", HEAD + NESTED + BIND.replace("predict", "make('!')")], BY_VALUE
    ),
}  # fmt: skip
