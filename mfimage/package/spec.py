"""``function.json`` as frozen dataclasses, and parsing with errors that name the field.

The digest of a package is the SHA-256 of its canonical JSON (sorted keys, no white space)
without ``lineage.created``, so binding the same thing twice gives the same reference. The file
also carries a ``checksum`` of everything in it, ``lineage.created`` included. That of a pipeline
names its parts by digest; it has a major version of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mfimage.errors import PackageError

SCHEMA_VERSION = "1.0"
# A reader that knows functions only refuses it as too new.
PIPELINE_VERSION = "2.0"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MIN_PARTS = 2
# Of a function, and of one of several that a foreach gave: ``predict/emea``.
_WORD = r"[A-Za-z_][A-Za-z0-9_-]{0,62}"
VALUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
NAME = re.compile(rf"{_WORD}(/{VALUE.pattern})?")
NAME_RULE = (
    "letters, digits, _ and -, at most 63, starting with a letter or _; or such a name, / and a "
    "value of letters, digits, _, - and ., at most 63, not starting with - or ."
)


def sha256_digest(data: bytes) -> str:
    """Return ``sha256:<hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_of(plain: Mapping[str, Any]) -> str:
    """Return ``sha256:<hex>`` of a JSON value's canonical form."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_digest(text.encode())


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of ``function.json``."""

    # Keys that a newer mfimage of the same major version wrote. They are ignored here, but are
    # part of the digest and are written back.
    unknown: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        known = {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        del known["unknown"]
        return {**self.unknown, **known}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class BlobRef(Part):
    """A blob by content: its digest (``sha256:<hex>``) and size in bytes."""

    digest: str
    size: int

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise PackageError(f"digest: expected sha256:<64 hex digits>, got {self.digest!r}")

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, kw_only=True)
class ArtifactRef(BlobRef):
    """An artifact's stored bytes."""

    # Metaflow's name for the serialized form, after ``gzip+`` when the stored bytes are compressed.
    encoding: str  # as ``gzip+pickle-v4``
    type: str  # the Python type as Metaflow recorded it: ``sklearn.linear_model...``
    info: Mapping[str, Any] = field(default_factory=dict)  # what its serializer needs; JSON


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec(Part):
    """What the function needs to run."""

    python: str  # in full, as 3.11.7; images and interpreters are chosen by the minor version
    platform: str  # linux/amd64 or linux/arm64: what the lock was solved for
    source: str  # of truth: requirements, pylock, pypi, conda, uv.lock or imports
    lock: BlobRef  # a ``pylock.toml`` (PEP 751) with hashes
    # Of distributions that are on no index; the lock names them as ``wheels/<file name>``.
    wheels: Mapping[str, BlobRef] = field(default_factory=dict)
    system_packages: tuple[str, ...] = ()  # of Debian
    # Distribution -> why it is there, as "imported by predict.py:3"; empty in older packages.
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: without reasons, that of older packages."""
        plain = super().to_dict()
        if not self.reasons:
            del plain["reasons"]
        return plain

    @property
    def python_minor(self) -> str:
        """``3.11`` of ``3.11.7``."""
        return ".".join(self.python.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Example(Part):
    """A recorded call: an input record and the output it gave at bind time."""

    input: Any
    output: Any


@dataclass(frozen=True, kw_only=True)
class Lineage(Part):
    """Where the function came from; ``created`` (RFC 3339, UTC) is not part of the digest."""

    flow: str
    run: str
    step: str
    task: str
    user: str | None = None
    metaflow_version: str | None = None
    git_commit: str | None = None
    created: str | None = None


@dataclass(frozen=True, kw_only=True)
class CallableSpec(Part):
    """What ``function.json`` states of a function and of a pipeline alike."""

    name: str  # a folder in the store and a path in the serving image
    task: str  # Flow/run/step/task; of a pipeline, that of each part
    kind: str = "json"  # json or avro: which decorator made it; of a pipeline, its first part
    batch: bool = False  # whether the function takes a list of records
    description: str = ""  # the docstring
    # JSON Schemas of one record and of its result (of an item, for a batch function).
    input_schema: Mapping[str, Any] = field(default_factory=dict)
    output_schema: Mapping[str, Any] = field(default_factory=dict)
    # Name of a serializer -> its schemas that were given explicitly: of one record ("input"), of
    # its result ("output"). Others are derived from the JSON Schemas.
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: without schemas, that of older packages."""
        plain = super().to_dict()
        if not self.schemas:
            del plain["schemas"]
        return plain

    def to_json(self) -> bytes:
        """Return the bytes of ``function.json``: sorted, indented, the same every time."""
        plain = self.to_dict()
        plain["checksum"] = sha256_of(plain)
        text = json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False)
        return text.encode() + b"\n"

    @functools.cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of everything."""
        return sha256_of(self.to_dict())


@dataclass(frozen=True, kw_only=True)
class FunctionSpec(CallableSpec):
    """The whole of a function's ``function.json``."""

    entrypoint: str  # module:function inside the code archive
    code: BlobRef  # code.tar.gz
    environment: EnvironmentSpec
    lineage: Lineage
    # Like a JSON Schema: the parameters that the function reads ("properties") and "required".
    parameter_schema: Mapping[str, Any] = field(default_factory=dict)
    # Values given at bind time instead of artifacts; JSON.
    parameters: Mapping[str, Any] = field(default_factory=dict)
    # The module that __main__ was when the task ran, for pickles that name it.
    script: str | None = None
    artifacts: Mapping[str, ArtifactRef] = field(default_factory=dict)
    schema_version: str = SCHEMA_VERSION

    @functools.cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of everything but ``lineage.created``."""
        plain = self.to_dict()
        del plain["lineage"]["created"]
        return sha256_of(plain)

    @property
    def blobs(self) -> dict[str, BlobRef]:
        """Every blob the package needs, by digest."""
        refs = [self.code, self.environment.lock]
        refs += self.environment.wheels.values()
        refs += self.artifacts.values()
        return {ref.digest: ref for ref in refs}


@dataclass(frozen=True, kw_only=True)
class FunctionRef(Part):
    """A function package of the same root, by content."""

    name: str
    digest: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise PackageError(f"name: {self.name!r} is not a function name")
        if not _DIGEST.fullmatch(self.digest):
            raise PackageError(f"digest: expected sha256:<64 hex digits>, got {self.digest!r}")


@dataclass(frozen=True, kw_only=True)
class PipelineSpec(CallableSpec):
    """The whole of a pipeline's ``function.json``; its digest covers those of its parts."""

    parts: tuple[FunctionRef, ...]  # the output of each is the input of the next
    schema_version: str = PIPELINE_VERSION


P = TypeVar("P", bound=Part)
Parser = Callable[[Any, str], Any]


def parse_spec(data: bytes, *, where: str) -> FunctionSpec:
    """Parse and check the bytes of a function's ``function.json``; see ``parse_any``."""
    spec = parse_any(data, where=where)
    if isinstance(spec, PipelineSpec):
        raise PackageError(f"{where}: {is_pipeline(spec)}")
    return spec


def parse_any(data: bytes, *, where: str) -> FunctionSpec | PipelineSpec:
    """Parse and check the bytes of a ``function.json``; ``PackageError`` names the field.

    Any byte that ``to_json`` did not write is damage. Unknown keys of the same major version are
    kept and ignored. ``where`` stands for the file in errors.
    """
    spec: FunctionSpec | PipelineSpec
    try:
        plain = _object(data)
        if _major(plain["schema_version"]) == _major(PIPELINE_VERSION):
            spec = _build(PipelineSpec, plain, "")
            if len(spec.parts) < MIN_PARTS:
                raise PackageError(f"parts: expected at least {MIN_PARTS}, got {len(spec.parts)}")
        else:
            spec = _build(FunctionSpec, plain, "")
            _check_wheels(spec)
        if not NAME.fullmatch(spec.name):
            raise PackageError(f"name: {spec.name!r} is not a function name")
    except PackageError as error:
        raise PackageError(f"{where}: {error.message}", hint=error.hint) from None
    if spec.to_json() != data:
        raise PackageError(
            f"{where}: it is not as it was written",
            hint="it was damaged or changed; bind the function again",
        )
    return spec


def is_pipeline(spec: PipelineSpec) -> str:
    """Return the clause by which a pipeline is refused where only a function can be used."""
    names = ", ".join(dict.fromkeys(part.name for part in spec.parts))
    return f"{spec.name} is a pipeline of {names}, and a function is needed here"


def _check_wheels(spec: FunctionSpec) -> None:
    for file_name in spec.environment.wheels:
        if "/" in file_name or "\\" in file_name or not file_name.endswith(".whl"):
            raise PackageError(f"environment.wheels: {file_name!r} is not a wheel's name")


def _object(data: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise PackageError(f"expected an object, got {type(plain).__name__}")
    _check_version(plain.get("schema_version"))
    # Of the file; to_json() computes it again.
    plain.pop("checksum", None)
    return plain


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _check_version(version: Any) -> None:
    text = str(version).partition(".")[0]
    if not (isinstance(version, str) and text.isascii() and text.isdigit()):
        raise PackageError(f"schema_version: expected a version, got {version!r}")
    major, oldest, newest = int(text), _major(SCHEMA_VERSION), _major(PIPELINE_VERSION)
    if major > newest:
        raise PackageError(
            f"schema_version {version} is newer than this mfimage reads ({newest}.x)",
            hint=f"install the mfimage that wrote it: pip install 'mfimage>={major}'",
        )
    if major < oldest:
        raise PackageError(
            f"schema_version {version} is older than this mfimage reads ({oldest}.x)",
            hint="bind the function again",
        )


def _of(cls: type[Part]) -> Parser:
    return functools.partial(_build, cls)


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


def _build(cls: type[P], value: Any, path: str) -> P:
    if not isinstance(value, dict):
        raise PackageError(f"{path}: expected an object, got {value!r}")
    fields = {item.name: item for item in dataclasses.fields(cls) if item.name != "unknown"}
    members: dict[str, Any] = {}
    for name, item in fields.items():
        where = f"{path}.{name}".lstrip(".")
        if name in value:
            parse = _PARSERS.get((cls, name)) or _scalar(str(item.type))
            members[name] = parse(value[name], where)
        elif item.default is item.default_factory is dataclasses.MISSING:
            raise PackageError(f"{where}: missing")
    unknown = {key: item for key, item in value.items() if key not in fields}
    try:
        return cls(**members, unknown=unknown)
    except PackageError as error:
        raise PackageError(f"{path}: {error.message}") from None


# Of the fields that are more than a scalar.
_PARSERS: dict[tuple[type[Part], str], Parser] = {
    (FunctionSpec, "code"): _of(BlobRef),
    (FunctionSpec, "environment"): _of(EnvironmentSpec),
    (FunctionSpec, "lineage"): _of(Lineage),
    (FunctionSpec, "examples"): _list_of(_of(Example)),
    (FunctionSpec, "artifacts"): _mapping_of(_of(ArtifactRef)),
    (FunctionSpec, "schemas"): _mapping_of(_scalar("Mapping[str, Any]")),
    (PipelineSpec, "examples"): _list_of(_of(Example)),
    (PipelineSpec, "parts"): _list_of(_of(FunctionRef)),
    (PipelineSpec, "schemas"): _mapping_of(_scalar("Mapping[str, Any]")),
    (EnvironmentSpec, "lock"): _of(BlobRef),
    (EnvironmentSpec, "wheels"): _mapping_of(_of(BlobRef)),
    (EnvironmentSpec, "system_packages"): _list_of(_scalar("str")),
    (EnvironmentSpec, "reasons"): _mapping_of(_scalar("str")),
}
