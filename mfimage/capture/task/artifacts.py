"""A task's artifact blobs, copied as stored bytes, never unpickled."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfimage.capture.task.task import TaskInfo, missing_artifact
from mfimage.errors import CaptureError, InputError, OptionError
from mfimage.function import json as json_values
from mfimage.function.decorator import DecoratedFunction
from mfimage.function.parameters import declared_parameters, missing_parameters
from mfimage.package.spec import ArtifactRef
from mfimage.package.store import PackageStore

_INCLUDED_FILE = "metaflow.includefile.IncludedFile"


def copy_artifacts(
    task: TaskInfo, names: Iterable[str], store: PackageStore
) -> dict[str, ArtifactRef]:
    """Copy artifacts into a package store.

    Parameters
    ----------
    task : TaskInfo
        Whose they are.
    names : iterable of str
        Which.
    store : PackageStore
        Where they go; what is there already is not written again.

    Returns
    -------
    dict of name to ArtifactRef

    Raises
    ------
    TaskError
        When the task has no such artifact, or the datastore lost it.
    CaptureError
        When what is stored is not the artifact's content.
    """
    return {name: _copy(task, name, store) for name in sorted(names)}


def _copy(task: TaskInfo, name: str, store: PackageStore) -> ArtifactRef:
    artifact = task.artifacts.get(name)
    if artifact is None:
        raise missing_artifact(task, name)
    if artifact.type == _INCLUDED_FILE:
        raise CaptureError(
            f"artifact {name!r} of {task.pathspec} is an IncludeFile: its content is not in it",
            hint=f"keep the content in a step, as self.{name}_text = self.{name}, "
            "or name the artifacts that the function needs with artifacts=",
        )
    with task.store.open(name) as (path, compressed):
        blob = store.put_file(path)
    return ArtifactRef(
        digest=blob.digest,
        size=blob.size,
        encoding=f"gzip+{artifact.encoding}" if compressed else artifact.encoding,
        type=artifact.type,
        info=artifact.info,
    )


# Which parameters a function reads, told from its source.


def parameters_read(function: DecoratedFunction) -> set[str] | None:
    """Return the names of the parameters that a function can read.

    Returns
    -------
    set of str or None
        The attributes that the code reads; None when the parameters go somewhere that cannot be
        followed, so that any may be read.
    """
    if not function.signature.takes_params:
        return set()
    name = list(inspect.signature(function.__wrapped__).parameters)[1]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__wrapped__)))
    except (OSError, SyntaxError, TypeError):
        return None
    return _reads(tree.body[0], name)


def _reads(function: ast.AST, name: str) -> set[str] | None:
    found: set[str] = set()
    followed: set[ast.AST] = set()
    for node in ast.walk(function):
        value = getattr(node, "value", None)
        if isinstance(value, ast.Name) and value.id == name:
            member = _member(node)
            if member is None:
                return None
            found.add(member)
            followed.add(value)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == name and node not in followed:
            return None
        if isinstance(node, ast.arg) and node.arg == name and not _is_own(function, node):
            return None
    return found


def _member(node: ast.AST) -> str | None:
    """Return ``model`` of ``params.model`` and ``params["model"]``."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return None if node.attr.startswith("_") else node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


def _is_own(function: ast.AST, argument: ast.arg) -> bool:
    arguments = getattr(function, "args", None)
    return arguments is not None and argument in [*arguments.posonlyargs, *arguments.args]


# Which artifacts of a task become a function's parameters.


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a function wants of a task.

    Attributes
    ----------
    names : frozenset of str or None
        The artifacts it may read; None when that may be any.
    required : frozenset of str
        Those that must be there.
    """

    names: frozenset[str] | None
    required: frozenset[str]

    def choose(self, task: TaskInfo) -> list[str]:
        """Return the artifacts to take along, sorted.

        Raises
        ------
        TaskError
            When one that is required is not there.
        """
        for name in sorted(self.required - set(task.artifacts)):
            raise missing_artifact(task, name)
        wanted = set(task.artifacts) if self.names is None else self.names
        return sorted(wanted & set(task.artifacts))


def needs_of(
    function: DecoratedFunction, artifacts: Sequence[str] | None, given: Mapping[str, Any]
) -> Needs:
    """Tell what a function wants of a task.

    Parameters
    ----------
    function : DecoratedFunction
        The function.
    artifacts : sequence of str or None
        What the caller names; by default what the function declares, or else reads.
    given : mapping
        Parameters that have a value already.

    Raises
    ------
    OptionError
        When ``artifacts`` does not go with what the function declares.
    """
    kind = function.signature.params_type
    declared = declared_parameters(kind)
    must = missing_parameters(kind, set(given))
    if artifacts is not None:
        _check_named(function, artifacts, must)
        return Needs(names=frozenset(artifacts), required=frozenset(artifacts))
    if declared:
        return Needs(names=frozenset(declared) - given.keys(), required=frozenset(must))
    read = parameters_read(function)
    if read is None:
        return Needs(names=None, required=frozenset())
    return Needs(names=frozenset(read) - given.keys(), required=frozenset(read) - given.keys())


def _check_named(function: DecoratedFunction, artifacts: Sequence[str], must: list[str]) -> None:
    kind = function.signature.params_type
    if isinstance(artifacts, str):
        raise OptionError(
            f"artifacts: expected a list of names, got {artifacts!r}",
            hint=f"write artifacts=[{artifacts!r}]",
        )
    for name in must:
        if name not in artifacts:
            raise OptionError(
                f"artifacts: {kind.__name__} needs {name!r} too",
                hint="add it, or give it in parameters=",
            )
    for name in artifacts:
        _check_declared(kind.__name__, declared_parameters(kind), name, "artifacts")


def _check_declared(kind: str, declared: Mapping[str, Any], name: str, option: str) -> None:
    if declared and name not in declared:
        raise OptionError(
            f"{option}: {kind} declares no {name!r}", hint=f"it declares {', '.join(declared)}"
        )


def checked_values(function: DecoratedFunction, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a caller gives for parameters as plain JSON.

    Raises
    ------
    OptionError
        When the function declares no such parameter.
    InputError
        When a value has no JSON form.
    """
    kind = function.signature.params_type
    for name in values:
        _check_declared(kind.__name__, declared_parameters(kind), name, "parameters")
    plain = json_values.dumps(dict(values), root="parameters", error=InputError)
    return dict(json_values.loads(plain))


def parameter_schema(
    function: DecoratedFunction,
    needs: Needs,
    artifacts: Mapping[str, ArtifactRef],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a package says of its parameters, in the form of a JSON Schema.

    ``required`` are those that it surely reads: a server that cannot load one does not start.
    """
    properties: dict[str, Any] = {
        name: {} for name in declared_parameters(function.signature.params_type)
    }
    properties |= {name: {"x-python-type": ref.type} for name, ref in artifacts.items()}
    properties |= {name: {"default": value} for name, value in values.items()}
    return {"type": "object", "properties": properties, "required": sorted(needs.required)}
