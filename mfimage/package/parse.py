"""``function.json`` -> ``FunctionSpec``, with errors that name the field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mfimage.errors import PackageError
from mfimage.package.spec import (
    NAME,
    SCHEMA_VERSION,
    ArtifactRef,
    BlobRef,
    EnvironmentSpec,
    Example,
    FunctionSpec,
    Lineage,
)

T = TypeVar("T")


def parse_spec(data: bytes, *, where: str) -> FunctionSpec:
    """Parse and check; unknown keys of the same major version are ignored."""
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise PackageError(f"{where}: not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise PackageError(f"{where}: expected an object, got {type(plain).__name__}")
    _check_version(plain.get("schema_version"), where)
    try:
        spec = _spec(plain)
    except PackageError as error:
        raise PackageError(f"{where}: {error.message}") from None
    if not NAME.fullmatch(spec.name):
        raise PackageError(f"{where}: name: {spec.name!r} is not a function name")
    for file_name in spec.environment.wheels:
        if "/" in file_name or "\\" in file_name or not file_name.endswith(".whl"):
            raise PackageError(f"{where}: environment.wheels: {file_name!r} is not a wheel's name")
    return spec


def _check_version(version: Any, where: str) -> None:
    major, _, _ = str(version).partition(".")
    ours = SCHEMA_VERSION.partition(".")[0]
    if not major.isdigit():
        raise PackageError(f"{where}: schema_version: expected a version, got {version!r}")
    if int(major) > int(ours):
        raise PackageError(
            f"{where}: schema_version {version} is newer than this mfimage reads ({ours}.x)",
            hint=f"install the mfimage that wrote it: pip install 'mfimage>={major}'",
        )


def _spec(plain: dict[str, Any]) -> FunctionSpec:
    parts: dict[str, Callable[[Any, str], Any]] = {
        "code": _of(BlobRef),
        "environment": _environment,
        "lineage": _of(Lineage),
        "examples": lambda value, path: tuple(
            _of(Example)(item, f"{path}[{index}]") for index, item in enumerate(value)
        ),
        "artifacts": _mapping_of(ArtifactRef),
    }
    return _build(FunctionSpec, plain, "", parts)


def _environment(value: Any, path: str) -> EnvironmentSpec:
    parts: dict[str, Callable[[Any, str], Any]] = {
        "lock": _of(BlobRef),
        "wheels": _mapping_of(BlobRef),
        "system_packages": lambda value, _: tuple(value),
    }
    return _build(EnvironmentSpec, value, path, parts)


def _of(cls: type[T]) -> Callable[[Any, str], T]:
    return lambda value, path: _build(cls, value, path, {})


def _mapping_of(cls: type[T]) -> Callable[[Any, str], dict[str, T]]:
    def parse(value: Any, path: str) -> dict[str, T]:
        if not isinstance(value, dict):
            raise PackageError(f"{path}: expected an object, got {value!r}")
        return {key: _build(cls, item, f"{path}.{key}", {}) for key, item in value.items()}

    return parse


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
    "Mapping[str, Any]": (dict,),
    "tuple[str, ...]": (list, tuple),
}


def _build(
    cls: type[T], value: Any, path: str, parts: Mapping[str, Callable[[Any, str], Any]]
) -> T:
    if not isinstance(value, dict):
        raise PackageError(f"{path}: expected an object, got {value!r}")
    kwargs: dict[str, Any] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is always a dataclass here
        where = f"{path}.{item.name}".lstrip(".")
        if item.name not in value:
            if item.default is item.default_factory is dataclasses.MISSING:
                raise PackageError(f"{where}: missing")
            continue
        raw = value[item.name]
        kinds = _KINDS.get(str(item.type))
        if kinds and not isinstance(raw, kinds):
            raise PackageError(f"{where}: expected {item.type}, got {raw!r}")
        part = parts.get(item.name)
        kwargs[item.name] = part(raw, where) if part else raw
    try:
        return cls(**kwargs)
    except PackageError as error:
        raise PackageError(f"{path}: {error.message}") from None
