"""Importing a package's code, isolated from other functions in the same process.

In a process that runs one function (an image, a worker), its code folder is on ``sys.path``. In a
caller's process the same module name may already be taken, by the source that was bound or another
version of it. There, a package's modules are imported below ``_mfimage_<digest>``, and import
statements inside them search there first.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LOCK = threading.RLock()


class CodeSpace:
    """The modules of one code folder.

    Equal keys, as digests of the code, share modules. ``dedicated``: this process runs only this
    code. ``main`` is the module that pickles call ``__main__``.
    """

    def __init__(self, folder: Path, *, key: str, dedicated: bool, main: str | None) -> None:
        self._prefix = "" if dedicated else f"_mfimage_{key}."
        self._names = _top_level(folder)
        self._main = main
        if dedicated:
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        else:
            _register(self._prefix[:-1], folder, self._names)

    def owns(self, name: str) -> bool:
        """Tell whether a module's name, in an import or a pickle, is one of this code's."""
        return name.partition(".")[0] in self._names or (name == "__main__" and bool(self._main))

    def import_module(self, name: str) -> types.ModuleType:
        """Import a module by its name in the project, or any other module."""
        if name == "__main__" and self._main:
            name = self._main
        return importlib.import_module(f"{self._prefix}{name}" if self.owns(name) else name)

    def public(self, name: str | None) -> str | None:
        """Return the name of a module in the project."""
        return name.removeprefix(self._prefix) if name else name


def _top_level(folder: Path) -> frozenset[str]:
    """Return the names that can be imported from a folder."""
    names = set()
    for entry in folder.iterdir():
        if entry.suffix in (".py", ".so") and entry.is_file():
            names.add(entry.name.partition(".")[0])
        elif (entry / "__init__.py").is_file() or _is_namespace(entry):
            names.add(entry.name)
    return frozenset(names)


def _is_namespace(folder: Path) -> bool:
    """Tell whether a folder without ``__init__.py`` is a namespace package.

    An installed package of that name takes precedence: ``datasets/`` beside the code does not hide
    the ``datasets`` that it imports.
    """
    if not (folder.name.isidentifier() and folder.is_dir() and any(folder.rglob("*.py"))):
        return False
    installed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    found = importlib.machinery.PathFinder.find_spec(folder.name, installed)
    return found is None or found.origin is None


def _register(name: str, folder: Path, names: frozenset[str]) -> None:
    with _LOCK:
        if name in sys.modules:
            return
        package = types.ModuleType(name, "The code of one function package.")
        package.__path__ = [str(folder)]
        _FINDER.spaces[name] = _private_builtins(name, names)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        sys.modules[name] = package


def _private_builtins(prefix: str, names: frozenset[str]) -> dict[str, Any]:
    """Return builtins whose ``import`` finds the package's modules first."""
    original_import = builtins.__import__

    def private_import(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        top = name.partition(".")[0]
        if level or top not in names:
            return original_import(name, globals, locals, fromlist or (), level)
        module = original_import(f"{prefix}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{prefix}.{top}"]

    return {**vars(builtins), "__import__": private_import}


class _PrivateLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, private: dict[str, Any]) -> None:
        super().__init__(fullname, path)
        self._private = private

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = self._private
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, Any]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        private = self.spaces.get(fullname.partition(".")[0])
        if private is None or path is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            assert spec.origin is not None
            spec.loader = _PrivateLoader(fullname, spec.origin, private)
        return spec


_FINDER = _Finder()
