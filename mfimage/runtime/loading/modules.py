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
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from mfimage.errors import MfimageError

_LOCK = threading.RLock()  # not held during imports: the garbage collector may release in one
_STUBS = threading.RLock()
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
        self._released = dedicated
        with _LOCK:
            if not dedicated:
                for name in sorted(_top_level(folder)):
                    _check_free(name, folder)
                _USERS[folder] += 1
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))

    def import_module(self, name: str) -> types.ModuleType:
        """Import a module by its name in the project, or any other module."""
        if name != _STUB:
            return importlib.import_module(name)
        alias = f"{_STUB}_{self._key}"
        with _STUBS:
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


def share(folders: Iterable[Path]) -> list[list[Path]]:
    """Divide folders of code into those that one process can import.

    A process has one module of a name. Folders share one if what they have under the same name is
    the same. A folder with a name that is also an installed module's has a process of its own,
    where it hides that module from no other code.
    """
    groups: list[dict[str, list[Path]]] = []  # the folders of each, by the names that they have
    together: list[list[Path]] = []
    alone = []
    installed = _Installed()
    for folder in folders:
        found = _top_level(folder, unused=())
        if any(map(installed, found)):
            alone.append([folder])
            continue
        fits = (n for n, group in enumerate(groups) if _fits(folder, found, group))
        number = next(fits, len(groups))
        if number == len(groups):
            groups.append({})
            together.append([])
        together[number].append(folder)
        for name in found:
            groups[number].setdefault(name, []).append(folder)
    return together + alone


def _fits(folder: Path, names: Iterable[str], group: Mapping[str, Sequence[Path]]) -> bool:
    return all(_are_same(name, folder, other) for name in names for other in group.get(name, ()))


class _Installed:
    """Whether a module of a name is installed, remembered."""

    def __init__(self) -> None:
        self._found: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        if name not in self._found:
            spec = importlib.machinery.PathFinder.find_spec(name)
            # A folder without `__init__.py` is not a module that anything imports.
            is_module = spec is not None and spec.origin is not None
            self._found[name] = is_module or name in sys.builtin_module_names
        return self._found[name]


def _are_same(name: str, one: Path, other: Path) -> bool:
    return _is_same(name, one, other) and _is_same(name, other, one)


def _forget(folder: Path) -> None:
    _USERS.pop(folder, None)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    for name in list(sys.modules):  # not items(): collecting garbage meanwhile may call this, too
        own = getattr(sys.modules.get(name), "__dict__", {})
        place = own.get("__file__") or next(iter(own.get("__path__") or ()), "")
        if str(place).startswith(f"{folder}/"):
            sys.modules.pop(name, None)


def _top_level(folder: Path, unused: Collection[str] = _UNUSED) -> frozenset[str]:
    """Return the names that can be imported from a folder."""
    names = set()
    for entry in folder.iterdir():
        if entry.suffix in (".py", ".so") and entry.is_file():
            names.add(entry.name.partition(".")[0])
        elif (entry / "__init__.py").is_file() or _is_namespace(entry):
            names.add(entry.name)
    return frozenset(names - {_STUB, *unused})


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
    spec = importlib.util.find_spec(name) if module is None else getattr(module, "__spec__", None)
    if module is None and spec is None:
        return
    places = getattr(spec, "submodule_search_locations", None)
    file = next(iter(places or ()), None) or (spec.origin if spec and spec.has_location else None)
    home = Path(file).parent if file else None  # None when it is built in
    is_shared = home == folder or module is None or home in _USERS
    if home is None or not (is_shared and _is_same(name, folder, home)):
        here = "is already imported here" if module else "is another module here"
        raise NameTaken(f"{name} {here}, from {getattr(spec, 'origin', None) or file or 'no file'}")


def _is_same(name: str, folder: Path, other: Path) -> bool:
    """Return whether a module or package is the same in another folder, if it is there at all."""

    def files(root: Path) -> set[Path]:
        found = [*root.glob(f"{name}.*"), *(root / name).rglob("*")]
        return {
            path.relative_to(root) for path in found if path.suffix != ".pyc" and path.is_file()
        }

    def modules(paths: set[Path]) -> set[Path]:
        return {path for path in paths if path.suffix in (".py", ".so")}

    ours, theirs = files(folder), files(other)
    return not modules(theirs) or (
        modules(ours) == modules(theirs)
        and ours <= theirs
        and all((folder / each).read_bytes() == (other / each).read_bytes() for each in ours)
    )
