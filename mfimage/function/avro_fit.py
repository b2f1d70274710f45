"""Which branch of a union keeps a JSON value as it is."""

from __future__ import annotations

import struct
from typing import Any

from mfimage.function.avro_texts import Misfit, text_of
from mfimage.function.avro_types import NO_DEFAULT, Type
from mfimage.function.faults import shown

# How a value fits a type.
NOT, CHANGED, EXACT = 0, 1, 2
_Known = dict[tuple[int, int], int]
_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),), "boolean": (bool,), "int": (int,), "long": (int,),
    "float": (float, int), "double": (float, int), "bytes": (str,), "string": (str,),
    "fixed": (str,), "enum": (str,), "array": (list,), "map": (dict,), "record": (dict,),
}  # fmt: skip
_NAMES = {
    "null": "None", "boolean": "bool", "int": "int", "long": "int", "float": "float",
    "double": "float", "array": "list", "map": "dict", "record": "dict",
}  # fmt: skip


def fitting(value: Any, union: Type) -> int:
    """Return the index of the branch that a value is to be written in.

    The first that gives back an equal value of the same type; else the first that takes it: 1 is
    written as a double where nothing has integers. The only one that may be meant is returned
    even if the value does not fit: writing it says where.

    Raises
    ------
    Misfit
        When no branch takes it.
    """
    meant = [index for index, each in enumerate(union.branches) if _may_be(value, each)]
    if len(meant) == 1:
        return meant[0]
    known: _Known = {}
    fits = [(_fit(value, union.branches[index], known), -index) for index in meant]
    best, index = max(fits, default=(NOT, 0))
    if best == NOT:
        raise Misfit(f"expected {_either(union)}, got {shown(value)}")
    return -index


def _may_be(value: Any, made: Type) -> bool:
    kinds = (str,) if made.logical else _KINDS[made.kind]
    return isinstance(value, kinds) and (made.kind == "boolean" or not isinstance(value, bool))


def _either(union: Type) -> str:
    names = ["str" if each.logical else _NAMES.get(each.kind, "str") for each in union.branches]
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} or {last}" if most else last


def _fit(value: Any, made: Type, known: _Known) -> int:
    if made.kind == "union":
        return max(_fit(value, each, known) for each in made.branches)
    if not _may_be(value, made):
        return NOT
    if not isinstance(value, dict | list):
        return _fit_leaf(value, made)
    key = (id(value), id(made))
    if key not in known:  # else values that are nested deeply would be looked at again and again
        known[key] = _fit_members(value, made, known)
    return known[key]


def _fit_members(value: Any, made: Type, known: _Known) -> int:
    if made.kind == "record":
        return _fit_record(value, made, known)
    assert made.items is not None
    items = value.values() if isinstance(value, dict) else value
    return min((_fit(item, made.items, known) for item in items), default=EXACT)


def _fit_record(value: dict[str, Any], made: Type, known: _Known) -> int:
    if not value.keys() <= {each.key for each in made.fields}:
        return NOT
    found = EXACT
    for each in made.fields:
        if each.key in value:
            is_null = each.absent and value[each.key] is None
            found = min(found, NOT if is_null else _fit(value[each.key], each.type, known))
        elif not each.absent:
            has_default = each.default is not NO_DEFAULT or each.json_default is not NO_DEFAULT
            found = min(found, CHANGED if has_default else NOT)
        if found == NOT:
            break
    return found


def _fit_leaf(value: Any, made: Type) -> int:
    if made.kind == "enum":
        return EXACT if value in made.symbols else NOT
    if made.logical or made.kind in ("bytes", "fixed"):
        return _fit_text(value, made)
    if made.kind in ("int", "long"):
        bits = 31 if made.kind == "int" else 63
        return EXACT if -(1 << bits) <= value < 1 << bits else NOT
    if made.kind in ("float", "double"):
        return _fit_number(value, made.kind)
    return EXACT


def _fit_number(value: float, kind: str) -> int:
    form = "<f" if kind == "float" else "<d"
    try:
        (written,) = struct.unpack(form, struct.pack(form, value))
    except OverflowError:
        return NOT
    if written == value:
        return EXACT if isinstance(value, float) else CHANGED
    return CHANGED if isinstance(value, float) else NOT


def _fit_text(value: str, made: Type) -> int:
    text = text_of(made)
    assert text is not None
    try:
        raw = text.write(value)
        if made.kind == "fixed" and len(raw) != made.size:
            return NOT
        return EXACT if text.read(raw) == value else CHANGED
    except (Misfit, OverflowError):
        return NOT
