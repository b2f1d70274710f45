"""Where a decorated function is defined: which module, in which project folder."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from mfimage.capture.code.interpreter import IMPORTING
from mfimage.errors import CaptureError, MfimageError
from mfimage.function.decorator import DecoratedFunction

_SITES = {"site-packages", "dist-packages"}


@dataclass(frozen=True, kw_only=True)
class Definition:
    """Where a function is defined."""

    module: str  # the name to import it by, inside the code archive
    name: str  # what that module calls it
    root: Path | None  # the project's folder; None in an installed distribution
    # Its module cannot be imported again: a notebook, a REPL, an unguarded script.
    by_value: bool = False


def load_decorated(text: str, folder: Path | None = None) -> DecoratedFunction:
    """Import the function that ``file.py:function`` or ``module:function`` names, in ``folder``."""
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise CaptureError(
            f"{text!r} does not name a function", hint="write file.py:function or module:function"
        )
    module = import_place(place, folder)
    found = getattr(module, name, None)
    if found is None:
        members = vars(module).items()
        names = [key for key, value in members if isinstance(value, DecoratedFunction)]
        hint = "it has no decorated function; write @json_function above one"
        hint = f"its decorated functions: {', '.join(names)}" if names else hint
        raise CaptureError(f"{place} has no function {name!r}", hint=hint)
    return require_decorated(found, label=text)


def require_decorated(value: object, *, label: str = "") -> DecoratedFunction:
    """Return ``value`` when it is a decorated function, else raise ``CaptureError``."""
    if isinstance(value, DecoratedFunction):
        return value
    name = label or getattr(value, "__name__", repr(value))
    hint = "write @json_function above it: from metaflow import json_function"
    raise CaptureError(f"{name} is not a decorated function", hint=hint)


def is_file(place: str) -> bool:
    """Return whether a text names a file rather than a module."""
    return place.endswith(".py") or "/" in place


def import_place(place: str, folder: Path | None = None) -> ModuleType:
    """Import the module that a file or a dotted name in ``folder`` names."""
    previous = os.environ.get(IMPORTING)
    os.environ[IMPORTING] = "1"
    try:
        if is_file(place):
            # Not resolve(): the code is captured by the names that links give it.
            return _import_file(Path(os.path.abspath(place)), place)  # noqa: PTH100  (links stay)
        module = _import_from(folder or Path.cwd(), place)
        if folder and folder not in Path(str(module.__file__)).parents:
            message = f"{place} is not in the code package, but at {module.__file__}"
            raise CaptureError(message, hint="name one of the flow's own files")
        return module
    except MfimageError:
        raise
    except (Exception, SystemExit) as error:
        hint = "it must be importable: guard what should only run as a script with __name__"
        if isinstance(error, ModuleNotFoundError):
            hint = f"install {error.name!r}, or run from the project's folder"
        message = f"importing {place} failed: {type(error).__name__}: {error}"
        raise CaptureError(message, hint=hint) from error
    finally:
        if previous is None:
            del os.environ[IMPORTING]


def _import_file(path: Path, place: str) -> ModuleType:
    if not path.is_file():
        raise CaptureError(f"no file {place!r}", hint="check the path, from the folder you are in")
    root, name = _module_of(path)
    try:
        module = _import_from(root, name)
    except ModuleNotFoundError as error:
        # A file inside a package that imports its neighbours by their bare names is a script.
        neighbour = path.parent / str(error.name).partition(".")[0]
        is_there = neighbour.is_dir() or neighbour.with_name(f"{neighbour.name}.py").is_file()
        if root == path.parent or not is_there:
            raise
        module = _import_from(path.parent, path.stem)
    other = getattr(module, "__file__", None)
    if not other or not path.samefile(other):
        message = f"{place} cannot be imported as {module.__name__}: that is {other or 'built in'}"
        raise CaptureError(message, hint="give the file another name")
    return module


def _import_from(root: Path, name: str) -> ModuleType:
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    return importlib.import_module(name)


def _module_of(path: Path) -> tuple[Path, str]:
    """Return the folder to import a file from, and its module name there."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def locate(function: DecoratedFunction) -> Definition:
    """Return how a function can be imported elsewhere."""
    name, qualname = function.__module__, function.__qualname__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or inspect.getsourcefile(function.__wrapped__)
    # Not resolve(): a link is the project's name for its file.
    path = Path(os.path.abspath(file)) if file and Path(file).is_file() else None  # noqa: PTH100  (links stay)
    if name == "__main__" and path is None:
        return Definition(module=name, name=function.__name__, root=Path.cwd(), by_value=True)
    if "<locals>" in qualname:
        message = f"{qualname} is defined inside another function and cannot be imported"
        raise CaptureError(message, hint="move it to the top level of its module")
    if "." in qualname:
        hint = "a function is bound by its module and name; move it out of the class"
        raise CaptureError(f"{qualname} is not at the top level of {name}", hint=hint)
    if path is None:
        raise CaptureError(f"{name}.{qualname} has no source file", hint="define it in a module")
    if name == "__main__":
        spec = getattr(module, "__spec__", None)  # python -m has one
        root = (_root_of(path, spec.name) if spec else None) or path.parent
        return Definition(
            module=".".join(path.relative_to(root).with_suffix("").parts),
            name=_name_in_module(function),
            root=root,
            by_value="." in path.stem or _binds_on_import(path),
        )
    if any(space.get("__name__") == name for space, _ in _importing()):
        raise CaptureError(
            f"{qualname} is bound while its own module, {name}, is imported",
            hint="importing it again would bind it again: bind it elsewhere, or put the binding "
            "under: if __name__ == '__main__':",
        )
    folder = _root_of(path, name)
    if folder is None:  # the module was not imported by its path
        folder, name = _module_of(path)
    project = folder if _SITES.isdisjoint(folder.parts) else None
    return Definition(module=name, name=_name_in_module(function), root=project)


def _root_of(path: Path, module: str) -> Path | None:
    """Return the folder from which ``path`` is importable as ``module``, if there is one."""
    parts = module.split(".")
    parts = [*parts, "__init__"] if path.stem == "__init__" else parts
    if tuple(parts) != (*path.parts[-len(parts) : -1], path.stem):
        return None
    return path.parents[len(parts) - 1]


def _name_in_module(function: DecoratedFunction) -> str:
    members = vars(sys.modules.get(function.__module__, ModuleType("")))
    if not members or members.get(function.__name__) is function:
        return function.__name__
    for name, value in members.items():
        if value is function:
            return name
    message = f"{function.__module__} has no name for the decorated {function.__name__}"
    hint = "write @json_function above its def, or give the result a name in the module"
    raise CaptureError(message, hint=hint)


def _importing() -> Iterator[tuple[dict[str, object], int]]:
    """Yield namespace and line of every module whose top level is running, innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            yield frame.f_globals, frame.f_lineno
        frame = frame.f_back


def _binds_on_import(path: Path) -> bool:
    """Return whether the script's current statement would run on import, too."""
    lines = [line for space, line in _importing() if space.get("__name__") == "__main__"]
    if not lines:
        return False
    for statement in ast.parse(path.read_bytes()).body:
        if statement.lineno <= lines[-1] <= (statement.end_lineno or statement.lineno):
            test = list(ast.walk(statement.test)) if isinstance(statement, ast.If) else []
            return not any(isinstance(node, ast.Name) and node.id == "__name__" for node in test)
    return False
