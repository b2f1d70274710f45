"""``file.py:function`` or ``module:function`` -> the function, from here or a code package."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from mfimage.capture.code._reading import find_local
from mfimage.capture.code.code_package import unpacked_code, with_code_package
from mfimage.capture.code.locate import is_file, load_decorated
from mfimage.capture.task.pathspec import find_task
from mfimage.errors import CaptureError, TaskError
from mfimage.function.decorator import DecoratedFunction


@dataclass(frozen=True, kw_only=True)
class Named:
    """A function that a text names."""

    function: DecoratedFunction
    package: str | None  # the task whose code package has it; None when it is on this machine


@contextlib.contextmanager
def find_function(
    text: str, *, task: str, namespace: str | None = None, code: str | None = None
) -> Iterator[Named]:
    """Yield the function that a text names; it can be bound to ``task`` until the block ends."""
    # ``code`` says where its file is: ``here``, or in the code package of the ``task``'s run. By
    # default it is here, unless there is no such file or module.
    if code == "here" or (code is None and _is_here(text)):
        yield Named(function=load_decorated(text), package=None)
        return
    found = find_task(task, namespace=namespace)
    try:
        packaged = with_code_package(found)
    except TaskError as error:
        if code is not None:
            raise
        message = f"there is no {text.rpartition(':')[0]} here, and {error.message}"
        raise TaskError(message, hint=error.hint) from None
    package = packaged.pathspec
    with unpacked_code(packaged) as folder, _forgotten(folder):
        yield Named(function=_load_from(folder, text, package), package=package)


def _is_here(text: str) -> bool:
    place = text.rpartition(":")[0]
    if not place:
        return True  # it names nothing, which loading it reports
    if is_file(place):
        return Path(place).is_file()
    top = place.partition(".")[0]
    return find_local(Path.cwd(), top) is not None or importlib.util.find_spec(top) is not None


def _load_from(folder: Path, text: str, package: str) -> DecoratedFunction:
    place, _, name = text.rpartition(":")
    if is_file(place):
        # Metaflow packages the folder of the flow's file; the text may name folders above it.
        parts = [part for part in PurePath(place).parts if part not in ("/", "..")]
        paths = [folder.joinpath(*parts[i:]) for i in range(len(parts))]
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            message = f"no file {place!r} here, and none in the code package of {package}"
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")]
            files.sort(key=lambda name: (name.count("/"), name))
            hint = f"it has: {', '.join(files[:10]) or 'none of the flow'}"
            raise CaptureError(message, hint=hint)
        return load_decorated(f"{found}:{name}")
    return load_decorated(text, folder=folder)


@contextlib.contextmanager
def _forgotten(folder: Path) -> Iterator[None]:
    """Forget what was imported from a folder, which is about to be deleted."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and folder in Path(file).parents:
                del sys.modules[name]
