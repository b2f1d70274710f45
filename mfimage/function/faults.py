"""pydantic's errors as faults: one per place, in the words of the user's type hints."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from mfimage.errors import Fault, join_path, shorten

# A record may have a million bad places.
MAX_FAULTS = 50

_EXPECTED = {
    "int_type": "int", "int_parsing": "int", "int_from_float": "int", "float_type": "float",
    "float_parsing": "float", "string_type": "str", "bool_type": "bool", "bool_parsing": "bool",
    "dict_type": "dict", "mapping_type": "dict", "list_type": "list", "tuple_type": "list",
    "none_required": "None", "model_attributes_type": "dict", "iterable_type": "list",
    "datetime_type": "datetime", "date_type": "date", "time_type": "time", "uuid_type": "UUID",
}  # fmt: skip
_ABSENT = ("missing", "missing_argument", "missing_keyword_only_argument")
_UNEXPECTED = ("extra_forbidden", "unexpected_keyword_argument")


def explain(failure: ValidationError, payload: bytes, root: str) -> list[Fault]:
    """Return one fault per place where JSON bytes do not fit, at most ``MAX_FAULTS``."""
    first = failure.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return [Fault(path=root, message=_not_json(first))]
    return explain_value(failure, from_json(payload), root)


def explain_value(failure: ValidationError, value: Any, root: str) -> list[Fault]:
    """Return one fault per place where a JSON value does not fit, at most ``MAX_FAULTS``."""
    by_path: dict[str, list[ErrorDetails]] = {}
    for detail in failure.errors(include_url=False):
        by_path.setdefault(_path(detail, value, root), []).append(detail)
        if len(by_path) == MAX_FAULTS:
            break
    return [Fault(path=path, message=_message(group)) for path, group in by_path.items()]


def _not_json(detail: ErrorDetails) -> str:
    reason = str(detail.get("ctx", {}).get("error", "invalid"))
    if reason.startswith("recursion limit"):
        return "nested too deeply"
    return f"not JSON: {reason}"


def _path(detail: ErrorDetails, document: Any, root: str) -> str:
    """Follow a location through the document; a part that is not a member is a union's tag."""
    path = root
    *parents, last = detail["loc"] or ("",)
    for part in parents:
        if _is_member(document, part):
            document, path = document[part], join_path(path, part)
    if detail["loc"] and _is_place(detail, document, last):
        path = join_path(path, last)
    return path


def _is_member(document: Any, part: int | str) -> bool:
    if isinstance(document, list):
        return isinstance(part, int) and part < len(document)
    return isinstance(document, dict) and part in document


def _is_place(detail: ErrorDetails, document: Any, last: int | str) -> bool:
    """Return whether the last part of a location is a member, not a union's tag."""
    if detail["type"] in _ABSENT:
        return isinstance(document, dict | list)
    # A member may be called "int": compare the refused value.
    if not _is_member(document, last):
        return False
    member, refused = document[last], detail["input"]
    return type(member) is type(refused) and bool(member == refused)


def _message(group: list[ErrorDetails]) -> str:
    first = group[0]
    if first["type"] in _ABSENT:
        return "missing"
    if first["type"] in _UNEXPECTED:
        return "not expected here"
    wanted = [_wanted(detail) for detail in group]
    if all(wanted):
        *others, last = dict.fromkeys(map(str, wanted))
        either = f"{', '.join(others)} or {last}" if others else last
        return f"expected {either}, got {shorten(repr(first['input']))}"
    reasons = dict.fromkeys(f"{item['msg'][:1].lower()}{item['msg'][1:]}" for item in group)
    return f"{'; '.join(reasons)}, got {shorten(repr(first['input']))}"


def _wanted(detail: ErrorDetails) -> str | None:
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind in ("model_type", "dataclass_type"):
        return str(context["class_name"])
    return _EXPECTED.get(kind)
