"""What a server speaks beside JSON: a function's specification and the serializers -> wires.

A wire stands at the server's edge and turns bytes of its form into JSON bytes and back, so that
the function's own parser reads each record and its own writer writes each result, whichever form
they come and go in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mfimage.errors import Fault, InputError, OutputError, SchemaError
from mfimage.function import json as json_values
from mfimage.function.serializers import Serializer, serializers
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.serving.problems import PROBLEM_SCHEMA

# What paths in a serializer's faults start with.
_DATA = "data"
_DEFINITIONS = "$defs"

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One form of what crosses a function's boundary.

    Attributes
    ----------
    serializer : Serializer
        Reads and writes it.
    input, output : Any
        The form's own schemas of what comes in and what goes out.
    data : str
        What paths in input errors start with.
    many : Wire or None
        The same for a list of records and the list of what became of each; None when the form
        has no schema of those.
    """

    serializer: Serializer
    input: Any
    output: Any
    data: str
    many: Wire | None = None

    @property
    def media_type(self) -> str:
        """What ``Content-Type`` calls the form."""
        return self.serializer.media_type

    def loads(self, body: bytes) -> bytes:
        """Return the JSON bytes of what a request's body says.

        Raises
        ------
        InputError
            When it is not in this form, whatever the serializer raises then.
        """
        try:
            value = self.serializer.loads(body, self.input)
        except InputError as error:
            raise InputError([self._at_home(fault) for fault in error.faults]) from None
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            fault = Fault(path=self.data, message=f"not {self.media_type}: {reason}")
            raise InputError([fault]) from error
        return json_values.dumps(value, root=self.data, error=InputError)

    def dumps(self, payload: bytes) -> bytes:
        """Return in this form what JSON bytes say.

        Raises
        ------
        OutputError
            When it has no such form.
        """
        try:
            return self.serializer.dumps(json_values.loads(payload), self.output)
        except InputError as error:  # the client's input was good
            raise OutputError(error.faults) from error

    def _at_home(self, fault: Fault) -> Fault:
        """Let a path start with the name of the function's own parameter."""
        rest = fault.path.removeprefix(_DATA)
        if rest == fault.path or rest[:1] not in ("", ".", "["):
            return fault
        return Fault(path=self.data + rest, message=fault.message)


def wires_of(spec: FunctionSpec, *, data: str) -> Mapping[str, Wire]:
    """Return what can be spoken with a function beside JSON, by media type.

    That is each serializer that is known in this process and has a schema for what the function
    takes and gives. Why another is left out is told in the log.

    Parameters
    ----------
    spec : FunctionSpec
        The function.
    data : str
        Name of its first parameter.
    """
    wires = {}
    for name, serializer in serializers().items():
        if name == "json":
            continue
        with _left_out_if_it_fails(spec.name, serializer):
            wires[serializer.media_type] = _wire(spec, serializer, data)
    return wires


@contextmanager
def _left_out_if_it_fails(where: str, serializer: Serializer) -> Iterator[None]:
    try:
        yield
    except SchemaError as error:
        log.info("%s is not served as %s: %s", where, serializer.media_type, error)
    except Exception:
        # Somebody's own serializer may be wrong about this function; it breaks only itself.
        message = "%s is not served as %s: its serializer failed"
        log.warning(message, where, serializer.media_type, exc_info=True)


def _wire(spec: FunctionSpec, serializer: Serializer, data: str) -> Wire:
    given = spec.schemas.get(serializer.name, {})

    def schema(side: str, described: Mapping[str, Any]) -> Any:
        explicit = given.get(side)
        return _schema(serializer, described, spec.name) if explicit is None else explicit

    return Wire(
        serializer=serializer,
        input=schema("input", spec.input_schema),
        output=schema("output", spec.output_schema),
        data=data,
        many=_list_wire(spec, serializer),
    )


def _schema(serializer: Serializer, described: Mapping[str, Any], name: str) -> Any:
    made = serializer.schema(described, name=name)
    try:
        json_values.dumps(made, root="schema")
    except OutputError as error:
        raise SchemaError(
            f"{serializer.name}: schema() must return a JSON value: {error}"
        ) from None
    return made


def _list_wire(spec: FunctionSpec, serializer: Serializer) -> Wire | None:
    given = spec.schemas.get(serializer.name, {})
    sides = {"input": spec.input_schema, "output": spec.output_schema}
    for side, explicit in given.items():
        sides[side] = {f"x-{serializer.name}-schema": explicit}
    with _left_out_if_it_fails(f"{spec.name}/batch", serializer):
        return Wire(
            serializer=serializer,
            input=_schema(serializer, list_schema(sides["input"]), spec.name),
            output=_schema(serializer, outcomes_schema(sides["output"]), spec.name),
            data="records",
        )
    return None


def list_schema(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a list of records."""
    item, definitions = _apart(record)
    made = {"type": "array", "items": item}
    return {**made, _DEFINITIONS: definitions} if definitions else made


def outcomes_schema(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of what a list of records is answered with."""
    item, definitions = _apart(result)

    def define(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        key = name
        while key in definitions:
            key += "_"
        definitions[key] = {"title": name, **schema}
        return {"$ref": f"#/{_DEFINITIONS}/{key}"}

    problem = define("Problem", PROBLEM_SCHEMA)
    # Named, for forms that name their types.
    items = [
        define(name, {"type": "object", "required": [key], "properties": {key: schema}})
        for name, key, schema in (("Answer", "result", item), ("Refusal", "error", problem))
    ]
    return {"type": "array", "items": {"oneOf": items}, _DEFINITIONS: definitions}


def _apart(schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a schema without its definitions, and them: they stand at the root."""
    own = dict(schema)
    return own, dict(own.pop(_DEFINITIONS, {}))
