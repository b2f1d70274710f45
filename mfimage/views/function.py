"""A function package -> what people look at: one data model for notebooks and cards.

It reads what is on this machine, and downloads nothing: the lock of a package in a bucket is read
if it is in the cache, and sizes are those of what is installed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfimage.backends.satisfies import installed_size
from mfimage.capture.lock.pylock import LockedPackage, read_lock
from mfimage.errors import MfimageError
from mfimage.package.spec import CallableSpec, EnvironmentSpec, Example, FunctionSpec, Lineage
from mfimage.package.store import Package, Pipeline
from mfimage.sizes import format_size

_HINTS = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "array": "list",
    "object": "dict",
}
_SHOWN = 4  # alternatives of a type
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True, kw_only=True)
class ArtifactView:
    """An artifact in a function package."""

    name: str
    type: str  # the Python type, as Metaflow recorded it
    size: int  # of its stored bytes

    @property
    def size_text(self) -> str:
        """The size for people."""
        return format_size(self.size)


@dataclass(frozen=True, kw_only=True)
class DistributionView:
    """A distribution of an environment."""

    name: str
    version: str  # empty if the lock is not on this machine
    why: str  # it is included, as ``imported by predict.py:3``
    size: int | None = None  # in bytes, where it is known

    @property
    def size_text(self) -> str:
        """The size for people; empty if it is not known."""
        return "" if self.size is None else format_size(self.size)


@dataclass(frozen=True, kw_only=True)
class EnvironmentView:
    """The environment of a function."""

    python: str
    platform: str
    source: str
    system_packages: tuple[str, ...]
    # The largest first, then those whose size is not known, by name.
    distributions: tuple[DistributionView, ...]

    @property
    def size_text(self) -> str:
        """The size of all distributions for people; empty unless each is known."""
        sizes = [each.size for each in self.distributions if each.size is not None]
        return format_size(sum(sizes)) if 0 < len(sizes) == len(self.distributions) else ""


@dataclass(frozen=True, kw_only=True)
class FunctionView:
    """A function or a pipeline, as it is shown; every text is raw and must be escaped."""

    name: str
    reference: str  # empty if it is not known, as of a function in an image
    digest: str
    kind: str  # json or avro
    batch: bool
    signature: str
    description: str  # the docstring
    task: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    examples: tuple[Example, ...]
    # Those of a function; empty or None for a pipeline, which has parts.
    entrypoint: str = ""
    lineage: Lineage | None = None
    artifacts: tuple[ArtifactView, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    environment: EnvironmentView | None = None
    parts: tuple[FunctionView, ...] = ()

    @property
    def input_schema_text(self) -> str:
        """The schema of one record as indented JSON."""
        return as_json(self.input_schema)

    @property
    def output_schema_text(self) -> str:
        """The schema of its result as indented JSON."""
        return as_json(self.output_schema)

    @property
    def artifacts_size_text(self) -> str:
        """The size of all artifacts for people."""
        return format_size(sum(each.size for each in self.artifacts))

    @property
    def created(self) -> str:
        """When it was bound, to the minute; empty if it is not known."""
        when = self.lineage.created if self.lineage else None
        return f"{when[:10]} {when[11:16]} UTC" if when else ""

    @property
    def commit(self) -> str:
        """The Git commit of its code, shortened; empty if it is not known."""
        return ((self.lineage and self.lineage.git_commit) or "")[:12]

    @property
    def bound(self) -> str:
        """When, by whom and from which commit it was bound, as far as it is known."""
        user = (self.lineage and self.lineage.user) or ""
        known = {"": self.created, "by ": user, "from commit ": self.commit}
        return " ".join(f"{label}{text}" for label, text in known.items() if text)


def view(package: Package | Pipeline) -> FunctionView:
    """Return what is shown of a package; it takes milliseconds, and no network."""
    if isinstance(package, Pipeline):
        parts = tuple(view(part) for part in package.parts)
        return FunctionView(**_common(package.spec), reference=package.reference, parts=parts)
    spec = package.spec
    lock = package.store.peek_blob(spec.environment.lock)
    return view_of_spec(spec, reference=package.reference, lock=lock)


def view_of_spec(
    spec: FunctionSpec, *, reference: str = "", lock: bytes | None = None
) -> FunctionView:
    """Return what is shown of a function whose package is not at hand, as of one in an image."""
    artifacts = (
        ArtifactView(name=name, type=ref.type, size=ref.size)
        for name, ref in spec.artifacts.items()
    )
    return FunctionView(
        **_common(spec),
        reference=reference,
        entrypoint=spec.entrypoint,
        lineage=spec.lineage,
        artifacts=tuple(sorted(artifacts, key=lambda each: (-each.size, each.name))),
        parameters=spec.parameters,
        environment=_environment(spec.environment, lock),
    )


def _common(spec: CallableSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "digest": spec.digest,
        "kind": spec.kind,
        "batch": spec.batch,
        "signature": _signature(spec),
        "description": spec.description,
        "task": spec.task,
        "input_schema": spec.input_schema,
        "output_schema": spec.output_schema,
        "examples": spec.examples,
    }


def _signature(spec: CallableSpec) -> str:
    record, result = type_of(spec.input_schema), type_of(spec.output_schema)
    if spec.batch:
        return f"{spec.name}(records: list[{record}]) -> list[{result}]"
    return f"{spec.name}(record: {record}) -> {result}"


def type_of(schema: Any) -> str:
    """Return a JSON Schema as a type hint: classes by their names, ``Any`` for what has none."""
    if not isinstance(schema, Mapping):
        return "Any" if schema is True else "Never"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kinds = schema.get("type", "")
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return f"Literal[{', '.join(map(repr, values[:_SHOWN]))}{', ...' * (len(values) > _SHOWN)}]"
    if either := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(dict.fromkeys(map(type_of, either)))
    if isinstance(kinds, list):
        return " | ".join(type_of({**schema, "type": kind}) for kind in kinds) or "Any"
    return _container(kinds, schema) or _HINTS.get(kinds, "Any")


def _container(kind: str, schema: Mapping[str, Any]) -> str | None:
    if kind == "array" and schema.get("prefixItems"):
        return f"tuple[{', '.join(map(type_of, schema['prefixItems']))}]"
    if kind == "array" and schema.get("items"):
        return f"list[{type_of(schema['items'])}]"
    if kind == "object" and schema.get("properties"):
        return str(schema.get("title", "dict"))
    if kind == "object" and schema.get("additionalProperties") not in (None, True, False, {}):
        return f"dict[str, {type_of(schema['additionalProperties'])}]"
    return None


def as_json(value: Any, indent: int | None = 2) -> str:
    """Return a value as JSON, indented or in one line."""
    return json.dumps(value, indent=indent, ensure_ascii=False)


def _environment(spec: EnvironmentSpec, lock: bytes | None) -> EnvironmentView:
    return EnvironmentView(
        python=spec.python,
        platform=spec.platform,
        source=spec.source,
        system_packages=tuple(spec.system_packages),
        distributions=tuple(
            sorted(_distributions(spec, _locked(lock)), key=lambda e: (-(e.size or 0), e.name))
        ),
    )


def _locked(lock: bytes | None) -> Sequence[LockedPackage] | None:
    try:
        return None if lock is None else read_lock(lock)
    except MfimageError:
        return None


def _distributions(
    spec: EnvironmentSpec, locked: Sequence[LockedPackage] | None
) -> Iterator[DistributionView]:
    if locked is None:  # what function.json says
        for name, why in spec.reasons.items():
            yield DistributionView(name=name, version="", why=why)
        return
    for each in locked:
        wheels = [spec.wheels[file.name].size for file in each.files if file.name in spec.wheels]
        yield DistributionView(
            name=each.name,
            version=each.version,
            why=spec.reasons.get(each.name, _NOT_RECORDED),
            size=installed_size(each.name, each.version) or next(iter(wheels), None),
        )
