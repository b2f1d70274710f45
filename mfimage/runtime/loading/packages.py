"""The functions in an image's folder: one, or several by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mfimage.errors import OptionError, PackageError
from mfimage.package.spec import FunctionRef, FunctionSpec, PipelineSpec, is_pipeline, parse_any
from mfimage.runtime.layout import (
    BLOBS,
    CODE,
    FUNCTION_JSON,
    FUNCTION_VARIABLE,
    FUNCTIONS,
    FUNCTIONS_JSON,
    code_folder,
)  # fmt: skip

# Names that a message has room for.
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class FunctionFolder:
    """A function, and the folders of its unpacked code and its blobs; of a pipeline, its parts'."""

    spec: FunctionSpec | PipelineSpec
    code: Path
    blobs: Path
    parts: tuple[FunctionFolder, ...] = ()


def names(folder: Path) -> tuple[str, ...] | None:
    """Return the names of an image's functions; None if it is of one function alone."""
    path = folder / FUNCTIONS_JSON
    if not path.exists():
        return None
    try:
        found = tuple(json.loads(path.read_bytes())["functions"])
    except OSError as error:
        raise PackageError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        found = ()
    if not found or not all(isinstance(name, str) for name in found):
        raise PackageError(f"{path} does not list functions by name")
    return found


def find(folder: Path, name: str | None = None) -> FunctionFolder:
    """Read the description of an image's function; of several, of the one of a name."""
    several = names(folder)
    if several is None:
        spec = _read_spec(folder / FUNCTION_JSON)
        if name not in (None, spec.name):
            raise OptionError(f"function: {name!r} is not here", hint=f"there is {spec.name}")
        parts = spec.parts if isinstance(spec, PipelineSpec) else ()
        return FunctionFolder(
            spec=spec, code=folder / CODE, blobs=folder / BLOBS,
            parts=tuple(_part(folder, part) for part in parts),
        )  # fmt: skip
    if name is None:
        raise OptionError("function: this image has several", hint=f"one of: {shown(several)}")
    if name not in several:
        raise OptionError(f"function: {name!r} is not here", hint=f"one of: {shown(several)}")
    return _one_of_several(folder, name)


def find_all(folder: Path) -> Mapping[str, FunctionFolder]:
    """Read the descriptions of all functions of an image, by name."""
    several = names(folder)
    if several is None:
        found = find(folder)
        return {found.spec.name: found}
    return {name: _one_of_several(folder, name) for name in several}


def _part(folder: Path, ref: FunctionRef) -> FunctionFolder:
    found = _one_of_several(folder, ref.name)
    if found.spec.digest != ref.digest:
        raise PackageError(f"{folder}: {ref.name} is {found.spec.digest}, and not {ref.digest}")
    return found


def _one_of_several(folder: Path, name: str) -> FunctionFolder:
    path = folder / FUNCTIONS / name / FUNCTION_JSON
    spec = _read_spec(path)
    if isinstance(spec, PipelineSpec):
        raise PackageError(f"{path}: {is_pipeline(spec)}")
    code = folder / code_folder(spec.code.digest)
    return FunctionFolder(spec=spec, code=code, blobs=folder / BLOBS)


def shown(several: tuple[str, ...] | list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(several) - SHOWN
    return ", ".join(several[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read_spec(path: Path) -> FunctionSpec | PipelineSpec:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PackageError(
            f"{path}: {error.strerror}", hint=f"{FUNCTION_VARIABLE} names the package's folder"
        ) from None
    return parse_any(data, where=str(path))
