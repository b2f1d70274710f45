"""Importing a package's code under its own names.

Code finds itself by name (``pkgutil``, ``importlib.resources``, pickles, ``multiprocessing``), so
its modules are imported as what they are, from its folder on ``sys.path``. In a process that runs
one function (an image, a worker), nothing else has their names. In a caller's process the source
that was bound may have them, or another version of it: then the code is not loaded there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections import Counter
from pathlib import Path

from mfimage.errors import MfimageError

_LOCK = threading.RLock()
# Folders of code that functions in a caller's process use, and how many.
_USERS: Counter[Path] = Counter()
# The stub of a function captured by value: nothing refers to it, and every such package has one.
_STUB = "_bound_function"
# Nothing that runs imports these, and most projects have them.
_UNUSED = {_STUB, "conftest", "setup", "test", "tests"}


class NameTaken(MfimageError):
    """A module of the code is another one in this process."""


class CodeSpace:
    """The modules of one code folder, importable until ``release``.

    ``dedicated``: this process runs only this code. Otherwise, ``NameTaken`` if importing it here
    would give other modules, or give other code these. ``key`` is a digest of the code. ``main`` is
    the module that pickles call ``__main__``.
    """

    def __init__(self, folder: Path, *, key: str, dedicated: bool, main: str | None) -> None:
        self._folder, self._key, self.main = folder, key, main
        self._names = frozenset[str]() if dedicated else _top_level(folder)
        self._released = dedicated
        with _LOCK:
            for name in sorted(self._names):
                _check_free(name, folder)
            if not dedicated:
                _USERS[folder] += 1
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))

    def import_module(self, name: str) -> types.ModuleType:
        """Import a module by its name in the project, or any other module."""
        if name != _STUB:
            return importlib.import_module(name)
        alias = f"{_STUB}_{self._key}"
        with _LOCK:
            if alias not in sys.modules:
                spec = importlib.util.spec_from_file_location(alias, self._folder / f"{_STUB}.py")
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                sys.modules[alias] = module
        return sys.modules[alias]

    def release(self) -> None:
        """Forget the modules, once no other function uses them: their names are free again."""
        with _LOCK:
            if self._released:
                return
            self._released = True
            _USERS[self._folder] -= 1
            if not _USERS[self._folder]:
                _forget(self._folder)


def _forget(folder: Path) -> None:
    del _USERS[folder]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    for name, module in list(sys.modules.items()):
        own = getattr(module, "__dict__", {})
        place = own.get("__file__") or next(iter(own.get("__path__") or ()), None)
        if str(place).startswith(f"{folder}/"):
            del sys.modules[name]


def _top_level(folder: Path) -> frozenset[str]:
    """Return the names that can be imported from a folder."""
    names = set()
    for entry in folder.iterdir():
        if entry.suffix in (".py", ".so") and entry.is_file():
            names.add(entry.name.partition(".")[0])
        elif (entry / "__init__.py").is_file() or _is_namespace(entry):
            names.add(entry.name)
    return frozenset(names - _UNUSED)


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


def _check_free(name: str, folder: Path) -> None:
    """Raise ``NameTaken`` if a name is another module in this process, or would be later.

    What ``sys.path`` or the code of another function has is as good if its files are the same.
    """
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else module.__spec__
    if module is None and spec is None:
        return
    home = _home(spec)
    if home == folder or (
        home and (module is None or home in _USERS) and _is_same(name, folder, home)
    ):
        return
    here = "is already imported here" if module else "is another module here"
    raise NameTaken(f"{name} {here}, from {getattr(spec, 'origin', None) or home or 'no file'}")


def _home(found: types.ModuleType | importlib.machinery.ModuleSpec | None) -> Path | None:
    """Return the folder from which a module is imported; None when it is built in."""
    spec = getattr(found, "__spec__", found)
    places = getattr(spec, "submodule_search_locations", None)
    file = spec.origin if spec and spec.has_location else next(iter(places or ()), None)
    if spec is None or file is None:
        return None
    path = Path(file).parent if spec.has_location and places is not None else Path(file)
    return path.parents[spec.name.count(".")]


def _is_same(name: str, folder: Path, other: Path) -> bool:
    """Return whether two folders have the same module or package of a name."""

    def modules(root: Path) -> set[Path]:
        found = [*root.glob(f"{name}.*"), *(root / name).rglob("*.py")]
        return {path.relative_to(root) for path in found if path.suffix in (".py", ".so")}

    data = {path.relative_to(folder) for path in (folder / name).rglob("*") if path.is_file()}
    data = {path for path in data if path.parent.name != "__pycache__"}
    try:
        return modules(folder) == modules(other) and all(
            (folder / path).read_bytes() == (other / path).read_bytes()
            for path in modules(folder) | data
        )
    except OSError:
        return False
