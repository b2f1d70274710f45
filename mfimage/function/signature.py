"""A function's signature: checked when it is decorated, used on every call."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mfimage.errors import SchemaError, SignatureError
from mfimage.function import avro, hints
from mfimage.function.parameters import FunctionParameters

if typing.TYPE_CHECKING:
    from mfimage.function.schema import Schema

_LISTS = (list, typing.get_origin(typing.Sequence[int]), typing.get_origin(typing.Iterable[int]))
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The parts of a function's signature that mfimage needs.

    ``data`` is the name of the first parameter: paths in input errors start with it.
    ``schemas`` are Avro schemas that were given outright, of one record (``input``) and of its
    result (``output``).
    """

    fn: Callable[..., Any]
    data: str
    takes_params: bool
    params_type: type[FunctionParameters]
    batch: bool
    is_async: bool
    schemas: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        *,
        batch: bool = False,
        schemas: Mapping[str, Any] | None = None,
    ) -> Signature:
        """Read and check a function's signature; ``SignatureError``, ``SchemaError``."""
        _check_kind(fn)
        parameters = _parameters(fn)
        found = _resolved(fn)
        signature = cls(
            fn=fn,
            data=parameters[0].name,
            takes_params=len(parameters) == 2,
            params_type=_params_type(fn, parameters, found),
            batch=batch,
            is_async=inspect.iscoroutinefunction(fn),
            schemas=_checked_schemas(fn, schemas or {}),
        )
        if found is not None:
            signature.record_hints(found)
        return signature

    def record_hints(self, found: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Return the hints of one record and of its result; ``SignatureError`` by name."""
        if found is None:
            try:
                found = hints.resolve(self.fn)
            except (NameError, TypeError) as error:
                hint = "define it, or import it outside of `if TYPE_CHECKING:`"
                message = f"{self.fn.__name__}: {error} in its type hints"
                raise SignatureError(message, hint=hint) from None
        pair = found.get(self.data, Any), found.get("return", Any)
        for label, hint in zip((self.data, "return"), pair, strict=True):
            refused = hints.refusal(hint)
            if refused:
                raise SignatureError(
                    f"{self.fn.__name__}: {label}: {refused} has no JSON Schema",
                    hint="use dict, list, str, numbers, bool, None, Any, unions, TypedDict, "
                    "dataclasses, pydantic models, or containers of them",
                )
        if not self.batch:
            return pair
        return self._item(self.data, pair[0]), self._item("return", pair[1])

    def _item(self, label: str, hint: Any) -> Any:
        if hint is Any or hint is list:
            return Any
        if typing.get_origin(hint) in _LISTS:
            return next(iter(typing.get_args(hint)), Any)
        raise SignatureError(
            f"{self.fn.__name__}: {label}: a batch function takes and returns a list, "
            f"got {hints.name_of(hint)}",
            hint=f"write list[{hints.name_of(hint)}], or drop batch=True",
        )

    @functools.cached_property
    def schema(self) -> Schema:
        """The validators of one record and of its result, made when first used."""
        from mfimage.function.schema import Schema

        record, result = self.record_hints()
        name = self.fn.__name__
        return Schema.of(record, result, function=name, data=self.data, avro=self.schemas)


def _checked_schemas(fn: Callable[..., Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    checked = {}
    for label, schema in schemas.items():
        try:
            checked[label] = checked_schema(schema)
        except SchemaError as error:
            raise SchemaError(f"{fn.__name__}: {label}: {error}", hint=error.hint) from None
    return checked


def checked_schema(schema: Any) -> Any:
    """Return a given Avro schema as a JSON value: from a dict, a list, JSON text, or a parsed one.

    ``SchemaError`` says what is wrong; without fastavro, it is checked when it is used.
    """
    try:
        if isinstance(schema, str) and schema.lstrip()[:1] in ("{", "[", '"'):
            schema = json.loads(schema)
        if isinstance(schema, Mapping):  # fastavro leaves marks
            schema = {key: each for key, each in schema.items() if not str(key).startswith("__")}
        plain = json.loads(json.dumps(schema))  # later changes do not change the function
    except (TypeError, ValueError, RecursionError):
        text = f"Avro schema: expected a dict, a list or JSON text, got {schema!r}"
        raise SchemaError(text[:200]) from None
    try:
        avro.Codec(plain)
    except SchemaError:
        raise
    except Exception:  # noqa: BLE001, S110  (where a flow is imported, packages may be broken)
        pass
    return plain


def _check_kind(fn: Any) -> None:
    if not inspect.isfunction(fn):
        hint = "decorate a def: @json_function above def predict(data: dict, params: ...)"
        raise SignatureError(f"expected a function, got {fn!r}", hint=hint)
    if fn.__name__ == "<lambda>":
        raise SignatureError("a lambda has no name to be served by", hint="use def")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise SignatureError(f"{fn.__name__} is a generator; a function returns one result")


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 14):  # hints of names that are defined further down need no quotes
        import annotationlib

        options["annotation_format"] = annotationlib.Format.FORWARDREF
    parameters = list(inspect.signature(fn, **options).parameters.values())
    hint = "a function takes data first, then FunctionParameters if it needs them"
    for parameter in parameters:
        if parameter.kind not in _BY_POSITION:
            reason = f"parameter {parameter.name!r} cannot be given by position"
            raise SignatureError(f"{fn.__name__}: {reason}", hint=hint)
    if not parameters:
        raise SignatureError(f"{fn.__name__} takes no data", hint=hint)
    if len(parameters) > 2:
        reason = f"{parameters[2].name!r} is one parameter too many"
        hint += "; read everything else from the parameters"
        raise SignatureError(f"{fn.__name__}: {reason}", hint=hint)
    return parameters


def _resolved(fn: Callable[..., Any]) -> dict[str, Any] | None:
    try:
        return hints.resolve(fn)
    except NameError:
        return None  # a class that is defined further down: resolved when the schema is made
    except TypeError as error:
        raise SignatureError(f"{fn.__name__}: {error} in its type hints") from None


def _params_type(
    fn: Callable[..., Any], parameters: list[inspect.Parameter], found: dict[str, Any] | None
) -> type[FunctionParameters]:
    first, *rest = parameters
    if found is None:  # another hint cannot be resolved yet
        hint = rest[0].annotation if rest else None
        hint = fn.__globals__.get(hint) if isinstance(hint, str) else hint
        return hint if _is_params(hint) else FunctionParameters
    if _is_params(found.get(first.name)):
        raise SignatureError(
            f"{fn.__name__}: data comes first, FunctionParameters second",
            hint=f"def {fn.__name__}(data: dict, {first.name}: FunctionParameters) -> dict",
        )
    if not rest:
        return FunctionParameters
    hint = found.get(rest[0].name, FunctionParameters)
    kinds = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if len(kinds) == 1 and type(None) in typing.get_args(hint):
        hint = kinds[0]  # X | None, as one writes it for a default of None
    if not _is_params(hint):
        raise SignatureError(
            f"{fn.__name__}: {rest[0].name}: expected FunctionParameters, got {hints.name_of(hint)}"
        )
    return hint


def _is_params(hint: Any) -> typing.TypeGuard[type[FunctionParameters]]:
    return isinstance(hint, type) and issubclass(hint, FunctionParameters)
