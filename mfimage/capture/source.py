"""Where a decorated function is defined: which module, in which project folder."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from mfimage.errors import CaptureError
from mfimage.function.decorator import DecoratedFunction

# Set while mfimage imports somebody's module, so that a module that binds when it is imported
# does not bind for ever.
IMPORTING = "MFIMAGE_IMPORTING"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A function's place.

    Attributes
    ----------
    module : str
        The name to import it by, inside the code archive.
    root : Path or None
        The project's folder; None when the module is part of an installed distribution.
    by_value : bool
        Whether its module cannot be imported again: a notebook, a REPL, an unguarded script.
    """

    module: str
    root: Path | None
    by_value: bool = False


def load_decorated(text: str) -> DecoratedFunction:
    """Import the function that ``file.py:function`` or ``package.module:function`` names.

    Raises
    ------
    CaptureError
        When the file or the function is missing, or it is not decorated.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise CaptureError(
            f"{text!r} names no function", hint="write file.py:function or module:function"
        )
    module = _import(place)
    found = getattr(module, name, None)
    if found is None:
        names = [key for key, value in vars(module).items() if _is_decorated(value)]
        raise CaptureError(
            f"{place} has no function {name!r}",
            hint=f"its decorated functions: {', '.join(names)}"
            if names
            else "it has no decorated function; write @json_function above one",
        )
    return require_decorated(found, label=text)


def _is_decorated(value: object) -> bool:
    return isinstance(value, DecoratedFunction)


def require_decorated(value: object, *, label: str = "") -> DecoratedFunction:
    """Return ``value`` when it is a decorated function, else raise ``CaptureError``."""
    if isinstance(value, DecoratedFunction):
        return value
    name = label or getattr(value, "__name__", repr(value))
    raise CaptureError(
        f"{name} is not a decorated function",
        hint="write @json_function above it: from metaflow import json_function",
    )


def _import(place: str) -> ModuleType:
    path = Path(place)
    is_file = place.endswith(".py") or "/" in place
    if is_file and not path.is_file():
        raise CaptureError(f"no file {place!r}", hint="check the path, from the folder you are in")
    root, module = _module_of(path) if is_file else (Path.cwd(), place)
    sys.path.insert(0, str(root))
    previous = os.environ.get(IMPORTING)
    os.environ[IMPORTING] = "1"
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise CaptureError(
            f"importing {place} failed: {type(error).__name__}: {error}",
            hint=_import_hint(error),
        ) from error
    finally:
        if previous is None:
            del os.environ[IMPORTING]


def _import_hint(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name!r}, or run from the project's folder"
    return "it must be importable: guard what should only run as a script with __name__"


def _module_of(path: Path) -> tuple[Path, str]:
    """Return the folder to import a file from, and its module name there."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def locate(function: DecoratedFunction) -> Source:
    """Find out how a function can be imported elsewhere.

    Raises
    ------
    CaptureError
        When it cannot be, and why.
    """
    name, qualname = function.__module__, function.__qualname__
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None) or inspect.getsourcefile(function.__wrapped__)
    exists = path is not None and Path(path).is_file()
    if name == "__main__" and not exists:
        return Source(module=name, root=Path.cwd(), by_value=True)
    if "<locals>" in qualname:
        raise CaptureError(
            f"{qualname} is defined inside another function and cannot be imported",
            hint="move it to the top level of its module",
        )
    if not exists:
        raise CaptureError(f"{name}.{qualname} has no source file", hint="define it in a module")
    root, imported_as = _module_of(Path(str(path)))
    if name == "__main__" and _binds_on_import(Path(str(path))):
        return Source(module=name, root=root, by_value=True)
    if name != "__main__":
        root, imported_as = _root_of(Path(str(path)), name) or root, name
    _check_reachable(function, imported_as)
    return Source(module=imported_as, root=None if _is_installed(root) else root)


def _root_of(path: Path, module: str) -> Path | None:
    """Return the folder that makes ``path`` importable as ``module``."""
    depth = module.count(".") + (path.name == "__init__.py")
    return Path(os.path.abspath(path)).parents[depth]  # noqa: PTH100


def _is_installed(root: Path) -> bool:
    return "site-packages" in root.parts or "dist-packages" in root.parts


def _check_reachable(function: DecoratedFunction, module: str) -> None:
    if "." in function.__qualname__:
        raise CaptureError(
            f"{function.__qualname__} is not at the top level of {module}",
            hint="a function is bound by its module and name; move it out of the class",
        )


def _binds_on_import(path: Path) -> bool:
    """Tell whether the script's statement that runs now would run on import, too."""
    line = _main_line()
    if line is None:
        return False
    for statement in ast.parse(path.read_bytes()).body:
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            return not _is_guard(statement)
    return False


def _main_line() -> int | None:
    frame: FrameType | None = sys._getframe()
    found = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            found = frame.f_lineno
        frame = frame.f_back
    return found


def _is_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )
