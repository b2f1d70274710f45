"""Which artifacts of a task a function needs; they are copied as stored bytes, never unpickled."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfimage.capture.task.task import TaskInfo, missing_artifact
from mfimage.errors import CaptureError, InputError, OptionError
from mfimage.function.decorator import DecoratedFunction
from mfimage.function.parameters import declared_parameters, missing_parameters
from mfimage.package.spec import ArtifactRef
from mfimage.package.store import PackageStore

_INCLUDED_FILE = "metaflow.includefile.IncludedFile"


def copy_artifacts(
    task: TaskInfo, names: Iterable[str], store: PackageStore
) -> dict[str, ArtifactRef]:
    """Copy artifacts into a package store."""
    copied = {}
    for name in sorted(names):
        artifact = task.artifacts.get(name)
        if artifact is None:
            raise missing_artifact(task, name)
        if artifact.type == _INCLUDED_FILE:
            raise CaptureError(
                f"artifact {name!r} of {task.pathspec} is an IncludeFile: its content is elsewhere",
                hint=f"keep the content in a step, as self.{name}_text = self.{name}, "
                "or name the artifacts that the function needs with artifacts=",
            )
        with task.store.open(name) as (path, compressed):
            blob = store.put_file(path)
        encoding, kind = artifact.encoding, artifact.type
        copied[name] = ArtifactRef(
            digest=blob.digest, size=blob.size, type=kind, info=artifact.info,
            encoding=f"gzip+{encoding}" if compressed else encoding,
        )  # fmt: skip
    return copied


# Which parameters a function reads, from its source.


def parameters_read(function: DecoratedFunction) -> set[str] | None:
    """Return the parameters that a function can read; None when any: it passes them on."""
    if not function.signature.takes_params:
        return set()
    found: set[str] = set()
    layer: Any = function.__wrapped__
    while layer is not None:  # the decorators around the function run, too
        found_here = _reads(layer, 1)
        if found_here is None:
            return None
        found |= found_here
        layer = getattr(layer, "__wrapped__", None)
    return _through_class(found, function.signature.params_type, function.__name__)


def _through_class(found: set[str], kind: type, label: str) -> set[str] | None:
    """Replace the properties and methods of a parameters class by what they read."""
    names, seen = set[str](), set[str]()
    while found - seen:
        name = (found - seen).pop()
        seen.add(name)
        member = inspect.getattr_static(kind, name, None)
        names |= set() if hasattr(kind, name) else {name}
        code = getattr(member, "fget", getattr(member, "func", member))
        read = _reads(code, 0) if inspect.isfunction(code) else set()
        if read is None:
            return None
        found = found | read
    for name in sorted(names):
        if name.startswith("_"):
            message = f"{label} reads {name!r}, and a name that starts with _ is not a parameter"
            hint = "give the artifact another name, and run the flow again"
            raise CaptureError(message, hint=hint)
    return names


def _reads(function: Any, position: int) -> set[str] | None:
    """Return the members of a function's argument that it reads; None when it passes it on."""
    try:
        source = inspect.getsource(getattr(function, "__code__", function))
        tree: ast.AST = ast.parse(textwrap.dedent(source)).body[0]
    except (OSError, SyntaxError, TypeError):
        tree = ast.Pass()
    if not isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    arguments = tree.args
    own = [*arguments.posonlyargs, *arguments.args]
    passed = None if position < len(own) else arguments.vararg
    name = passed.arg if passed else own[position].arg if position < len(own) else ""
    found: set[str] = set()
    followed: set[ast.AST] = set()
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(value, ast.Name) and value.id == name:
            if passed is None:
                member = _member(node)
                if member is None:
                    return None
                found.add(member)
            elif not isinstance(node, ast.Starred):
                return None
            followed.add(value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and node not in followed:
            return None
        if isinstance(node, ast.arg) and node.arg == name and node not in [*own, passed]:
            return None
    return found


def _member(node: ast.AST) -> str | None:
    """Return ``model`` of ``params.model`` and ``params["model"]``."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return None if node.attr.startswith("__") else node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


# Which artifacts of a task become a function's parameters.


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a function needs of a task."""

    names: frozenset[str] | None  # those that it may read; None for all
    required: frozenset[str]  # those that must exist

    def choose(self, task: TaskInfo) -> list[str]:
        """Return the artifacts to include, sorted."""
        for name in sorted(self.required - set(task.artifacts)):
            raise missing_artifact(task, name)
        wanted = set(task.artifacts) if self.names is None else self.names
        return sorted(wanted & set(task.artifacts))


def needs_of(
    function: DecoratedFunction, artifacts: Sequence[str] | None, given: Mapping[str, Any]
) -> Needs:
    """Return what a function needs of a task."""
    kind = function.signature.params_type
    declared = declared_parameters(kind)
    must = missing_parameters(kind, set(given))
    if artifacts is not None:
        _check_named(kind, artifacts, must)
        return Needs(names=frozenset(artifacts), required=frozenset(artifacts))
    if declared:
        return Needs(names=frozenset(declared) - given.keys(), required=frozenset(must))
    read = parameters_read(function)
    if read is None:
        return Needs(names=None, required=frozenset())
    names = frozenset(read) - given.keys()
    return Needs(names=names, required=names)


def _check_named(kind: type, artifacts: Sequence[str], must: list[str]) -> None:
    if isinstance(artifacts, str):
        message = f"artifacts: expected a list of names, got {artifacts!r}"
        raise OptionError(message, hint=f"write artifacts=[{artifacts!r}]")
    for name in must:
        if name not in artifacts:
            message = f"artifacts: {kind.__name__} needs {name!r} too"
            raise OptionError(message, hint="add it, or give it in parameters=")
    _check_declared(kind, artifacts, "artifacts")


def _check_declared(kind: type, names: Iterable[str], option: str) -> None:
    declared = declared_parameters(kind)
    for name in names:
        if declared and name not in declared:
            message = f"{option}: {kind.__name__} declares no {name!r}"
            raise OptionError(message, hint=f"it declares {', '.join(declared)}")


def checked_values(function: DecoratedFunction, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's values of parameters as JSON values."""
    _check_declared(function.signature.params_type, values, "parameters")
    if not values:
        return {}
    # Imports pydantic, which takes long.
    from mfimage.function import json as json_values

    data = json_values.dumps(dict(values), root="parameters", error=InputError)
    return dict(json_values.loads(data))


def parameter_schema(
    function: DecoratedFunction,
    needs: Needs,
    artifacts: Mapping[str, ArtifactRef],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a package's parameters as a JSON Schema; what it certainly reads is required."""
    declared = declared_parameters(function.signature.params_type)
    properties: dict[str, Any] = {name: {} for name in declared}
    properties |= {name: {"x-python-type": ref.type} for name, ref in artifacts.items()}
    properties |= {name: {"default": value} for name, value in values.items()}
    # A server that cannot load one that is required does not start.
    return {"type": "object", "properties": properties, "required": sorted(needs.required)}
