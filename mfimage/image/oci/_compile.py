"""Compiles Python files to equal bytes on every machine: run by the image's minor version.

``python -I -S _compile.py < jobs.jsonl``; each line is ``[source, path in the image, target]``.

``marshal`` marks an object that may be referred to again by its reference count, which depends on
what else the process has done. Here each object has at least two references. Single characters are
shared by the whole process, and marked if interned: so all are. The files are not validated
against their sources (PEP 552, unchecked).
"""

from __future__ import annotations

import gc
import importlib.util
import json
import marshal
import sys
import warnings
from pathlib import Path
from types import CodeType
from typing import Any

_CHARACTERS = [sys.intern(chr(number)) for number in range(256)]
_UNCHECKED_HASH = (1).to_bytes(4, "little")
_ATTRIBUTES = (
    "co_name",
    "co_qualname",
    "co_filename",
    "co_consts",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_linetable",
    "co_exceptiontable",
)


_CONTAINERS = (CodeType, tuple, frozenset, slice)


def compiled(source: bytes, name: str) -> bytes:
    """Return the content of a ``.pyc``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(source, name, "exec", dont_inherit=True, optimize=0)
        held: list[Any] = [code]
        _hold(code, held)
        body = marshal.dumps(code)
    digest = importlib.util.source_hash(source)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + digest + body


def _hold(value: Any, held: list[Any]) -> None:
    """Add a reference to all parts of a value."""
    if isinstance(value, CodeType):
        parts = [getattr(value, name, None) for name in _ATTRIBUTES]
    elif isinstance(value, slice):
        parts = [value.start, value.stop, value.step]
    else:
        parts = list(value)
    held += parts
    for part in parts:
        if isinstance(part, _CONTAINERS):
            _hold(part, held)


def main() -> None:
    """Compile what stdin lists; files that do not compile are left out."""
    gc.disable()  # what is compiled has no cycles
    for line in sys.stdin:
        source, name, target = json.loads(line)
        try:
            content = compiled(Path(source).read_bytes(), name)
        except (SyntaxError, ValueError, RecursionError):
            continue
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
