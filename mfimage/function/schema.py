"""Validators and JSON Schemas of a signature, by pydantic."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails, from_json

from mfimage.errors import Fault, InputError, OutputError, SignatureError, ValueFault
from mfimage.function import hints, serializers

if typing.TYPE_CHECKING:
    from mfimage.function.signature import Signature

# Hints for which the validated value is the JSON value itself.
_PLAIN = (Any, dict, list, str, int, float, bool, None, type(None), dict[str, Any], list[Any])
RESULT = "result"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How one record comes in and its result goes out, both as JSON bytes."""

    data: str
    input: TypeAdapter[Any]
    output: TypeAdapter[Any]
    plain_output: bool

    @classmethod
    def of(cls, signature: Signature) -> Schema:
        """Make the validators.

        Raises
        ------
        SignatureError
            When pydantic can make no schema of a hint.
        """
        input_hint, output_hint = signature.record_hints()
        name = signature.fn.__name__
        return cls(
            data=signature.data,
            input=_adapter(input_hint, f"{name}: {signature.data}"),
            output=_adapter(output_hint, f"{name}: return"),
            plain_output=any(output_hint is plain or output_hint == plain for plain in _PLAIN),
        )

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one record."""
        return self.input.json_schema(mode="validation")

    def output_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of one result."""
        return self.output.json_schema(mode="serialization")

    def encode(self, record: Any) -> bytes:
        """Return a caller's record as JSON bytes; ``InputError`` when it has no JSON form."""
        return serializers.dumps(record, root=self.data, error=InputError)

    def parse(self, payload: bytes) -> Any:
        """Return the record in ``payload`` as the function's hints want it.

        Raises
        ------
        InputError
            With a path and a message for every place that does not fit.
        """
        return self._validate(self.input, payload, self.data, InputError)

    def dump(self, value: Any) -> bytes:
        """Return a function's result as JSON bytes.

        Raises
        ------
        OutputError
            When it does not fit the hints, or a part of it has no JSON form.
        """
        payload = serializers.dumps(value, root=RESULT)
        self._validate(self.output, payload, RESULT, OutputError)
        return payload

    def result(self, value: Any) -> Any:
        """Return a function's result as the JSON value that every caller gets."""
        payload = serializers.dumps(value, root=RESULT)
        checked = self._validate(self.output, payload, RESULT, OutputError)
        return checked if self.plain_output else serializers.loads(payload)

    def _validate(
        self, adapter: TypeAdapter[Any], payload: bytes, root: str, error: type[ValueFault]
    ) -> Any:
        try:
            value = adapter.validate_json(payload, strict=True)
        except ValidationError as failure:
            raise error(_faults(failure, payload, root)) from None
        # Python's parsers take these tokens, JSON does not know them.
        if b"NaN" in payload or b"Infinity" in payload:
            try:
                from_json(payload, allow_inf_nan=False)
            except ValueError:
                raise error([Fault(path=root, message="NaN and Infinity are no JSON")]) from None
        return value


def _adapter(hint: Any, where: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hints.adaptable(hint))
    except PydanticUserError as error:
        raise SignatureError(f"{where}: {error.message}") from None
    except NameError as error:
        raise SignatureError(f"{where}: {error}") from None


_EXPECTED = {
    "int_type": "int", "int_parsing": "int", "int_from_float": "int", "float_type": "float",
    "float_parsing": "float", "string_type": "str", "bool_type": "bool", "bool_parsing": "bool",
    "dict_type": "dict", "mapping_type": "dict", "list_type": "list", "tuple_type": "list",
    "none_required": "None", "model_attributes_type": "dict", "iterable_type": "list",
    "datetime_type": "datetime", "date_type": "date", "time_type": "time", "uuid_type": "UUID",
}  # fmt: skip


def _faults(failure: ValidationError, payload: bytes, root: str) -> list[Fault]:
    """Turn pydantic's errors into one fault per place, alternatives of a union together."""
    details = failure.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        reason = details[0].get("ctx", {}).get("error", "invalid")
        return [Fault(path=root, message=f"not JSON: {reason}")]
    document = from_json(payload)
    by_path: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        by_path.setdefault(_path(detail["loc"], document, root), []).append(detail)
    return [Fault(path=path, message=_message(group)) for path, group in by_path.items()]


def _path(location: tuple[int | str, ...], document: Any, root: str) -> str:
    """Follow a location through the document; what is no member is a union's tag."""
    path = root
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        elif isinstance(document, dict) and isinstance(part, str) and (part in document or last):
            document = document.get(part)
        else:
            continue
        path = serializers.join(path, part)
    return path


def _message(group: list[ErrorDetails]) -> str:
    first = group[0]
    if first["type"] == "missing":
        return "missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return "not expected here"
    wanted = [_wanted(detail) for detail in group]
    if all(wanted):
        names = list(dict.fromkeys(str(name) for name in wanted))
        return f"expected {_either(names)}, got {_shown(first['input'])}"
    return (
        "; ".join(
            dict.fromkeys(f"{detail['msg'][:1].lower()}{detail['msg'][1:]}" for detail in group)
        )
        + f", got {_shown(first['input'])}"
    )


def _wanted(detail: ErrorDetails) -> str | None:
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind in ("model_type", "dataclass_type"):
        return str(context["class_name"])
    return _EXPECTED.get(kind)


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
