"""Which artifacts of a task become a function's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfimage.capture.reads import parameters_read
from mfimage.capture.task import TaskInfo, missing_artifact
from mfimage.errors import InputError, OptionError
from mfimage.function import json as json_values
from mfimage.function.decorator import DecoratedFunction
from mfimage.function.parameters import declared_parameters, missing_parameters
from mfimage.package.spec import ArtifactRef


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
