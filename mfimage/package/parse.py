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
    Part,
)

P = TypeVar("P", bound=Part)
Parser = Callable[[Any, str], Any]


def parse_spec(data: bytes, *, where: str) -> FunctionSpec:
    """Parse and check the bytes of a ``function.json``.

    Unknown keys of the same major version are kept, and mean nothing.

    Parameters
    ----------
    data : bytes
        As ``FunctionSpec.to_json`` gave them: any other byte is a damage.
    where : str
        What to call it in errors.

    Raises
    ------
    PackageError
        Naming the field that is not as it should be.
    """
    try:
        spec = _checked(_spec(_object(data)))
    except PackageError as error:
        raise PackageError(f"{where}: {error.message}", hint=error.hint) from None
    if spec.to_json() != data:
        raise PackageError(
            f"{where}: it is not as it was written",
            hint="it was damaged or changed; bind the function again",
        )
    return spec


def _object(data: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise PackageError(f"expected an object, got {type(plain).__name__}")
    _check_version(plain.get("schema_version"))
    # What it says of itself as a file; to_json() says it anew.
    plain.pop("checksum", None)
    return plain


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_version(version: Any) -> None:
    major = str(version).partition(".")[0]
    ours = SCHEMA_VERSION.partition(".")[0]
    if not (isinstance(version, str) and major.isascii() and major.isdigit()):
        raise PackageError(f"schema_version: expected a version, got {version!r}")
    if int(major) > int(ours):
        raise PackageError(
            f"schema_version {version} is newer than this mfimage reads ({ours}.x)",
            hint=f"install the mfimage that wrote it: pip install 'mfimage>={int(major)}'",
        )
    if int(major) < int(ours):
        raise PackageError(
            f"schema_version {version} is older than this mfimage reads ({ours}.x)",
            hint="bind the function again",
        )


def _checked(spec: FunctionSpec) -> FunctionSpec:
    if not NAME.fullmatch(spec.name):
        raise PackageError(f"name: {spec.name!r} is not a function name")
    for file_name in spec.environment.wheels:
        if "/" in file_name or "\\" in file_name or not file_name.endswith(".whl"):
            raise PackageError(f"environment.wheels: {file_name!r} is not a wheel's name")
    return spec


def _spec(plain: dict[str, Any]) -> FunctionSpec:
    parts: dict[str, Parser] = {
        "code": _of(BlobRef),
        "environment": _environment,
        "lineage": _of(Lineage),
        "examples": _list_of(_of(Example)),
        "artifacts": _mapping_of(_of(ArtifactRef)),
        "schemas": _mapping_of(_scalar("Mapping[str, Any]")),
    }
    return _build(FunctionSpec, plain, "", parts)


def _environment(value: Any, path: str) -> EnvironmentSpec:
    parts: dict[str, Parser] = {
        "lock": _of(BlobRef),
        "wheels": _mapping_of(_of(BlobRef)),
        "system_packages": _list_of(_scalar("str")),
        "reasons": _mapping_of(_scalar("str")),
    }
    return _build(EnvironmentSpec, value, path, parts)


def _of(cls: type[P]) -> Parser:
    return lambda value, path: _build(cls, value, path, {})


def _list_of(parse: Parser) -> Parser:
    def parse_all(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise PackageError(f"{path}: expected a list, got {value!r}")
        return tuple(parse(item, f"{path}[{index}]") for index, item in enumerate(value))

    return parse_all


def _mapping_of(parse: Parser) -> Parser:
    def parse_all(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise PackageError(f"{path}: expected an object, got {value!r}")
        return {key: parse(item, f"{path}.{key}") for key, item in value.items()}

    return parse_all


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
    "Mapping[str, Any]": (dict,),
}


def _scalar(name: str) -> Parser:
    """Return a parser for a value of a dataclass's field type; any value for one not known."""

    def parse(value: Any, path: str) -> Any:
        kinds = _KINDS.get(name)
        if kinds and type(value) not in kinds:
            raise PackageError(f"{path}: expected {name}, got {value!r}")
        return value

    return parse


def _build(cls: type[P], value: Any, path: str, parts: Mapping[str, Parser]) -> P:
    if not isinstance(value, dict):
        raise PackageError(f"{path}: expected an object, got {value!r}")
    fields = {item.name: item for item in dataclasses.fields(cls) if item.name != "unknown"}
    members: dict[str, Any] = {}
    for name, item in fields.items():
        where = f"{path}.{name}".lstrip(".")
        if name in value:
            members[name] = parts.get(name, _scalar(str(item.type)))(value[name], where)
        elif item.default is item.default_factory is dataclasses.MISSING:
            raise PackageError(f"{where}: missing")
    unknown = {key: item for key, item in value.items() if key not in fields}
    try:
        return cls(**members, unknown=unknown)
    except PackageError as error:
        raise PackageError(f"{path}: {error.message}") from None
