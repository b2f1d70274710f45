"""Runs in a fresh interpreter: calls a function as ``mfimage.runtime call`` does, and watches.

Its argument names a file of JSON: ``outside`` are modules that the function's environment does not
have -> their distribution, ``hidden`` those of them that cannot be imported here either. What was
asked for from elsewhere replaces it: module -> where that was.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any


class _Without:
    """A finder without what is hidden."""

    def __init__(self, finder: Any, outside: Mapping[str, str], hidden: Iterable[str]) -> None:
        self._finder, self._outside, self._hidden = finder, outside, set(hidden)
        self._distributions = {outside[module] for module in self._hidden}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if top in self._outside and top not in sys.modules:
            self._note(top)
            if top in self._hidden:
                return None
        return self._finder.find_spec(name, path, target)

    def find_distributions(self, *args: Any) -> Iterator[Distribution]:
        find = getattr(self._finder, "find_distributions", lambda *_: ())
        for each in find(*args):
            if re.sub(r"[-_.]+", "-", each.name or "").lower() not in self._distributions:
                yield each

    def _note(self, module: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("importlib"):
            frame = frame.f_back
        caller = frame.f_globals.get("__name__", "")
        if caller.partition(".")[0] not in self._outside:
            _ASKED.setdefault(module, f"{caller}:{frame.f_lineno}")


_ASKED: dict[str, str] = {}


def main() -> None:
    """Call the function with the records on stdin."""
    file = Path(sys.argv[1])
    request = json.loads(file.read_bytes())
    outside, hidden = request["outside"], request["hidden"]
    sys.meta_path[:] = [_Without(finder, outside, hidden) for finder in sys.meta_path]
    sys.argv[1:] = ["call"]
    try:
        runpy.run_module("mfimage.runtime", run_name="__main__", alter_sys=True)
    finally:
        file.write_text(json.dumps(_ASKED))


if __name__ == "__main__":
    main()
