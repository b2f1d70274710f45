"""JSON Schemas that have an Avro schema, and values that fit them, for hypothesis."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

NAMES = st.sampled_from(
    ["a", "b", "sepal length (cm)", "1st", "é", "", "type", "a.b", "a b", "a_b"]
)
TEXTS = st.text(max_size=8)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INSTANTS = st.datetimes(min_value=datetime.datetime(1, 1, 2)).map(lambda at: f"{at.isoformat()}Z")

LEAVES: list[tuple[Schema, st.SearchStrategy[Any]]] = [
    ({"type": "null"}, st.none()),
    ({"type": "boolean"}, st.booleans()),
    ({"type": "integer"}, INTEGERS),
    ({"type": "number"}, FLOATS),
    ({"type": "string"}, TEXTS),
    ({"type": "string", "format": "date"}, st.dates().map(str)),
    ({"type": "string", "format": "date-time"}, INSTANTS),
    ({"type": "string", "format": "time"}, st.times().map(lambda at: at.isoformat())),
    ({"type": "string", "format": "uuid"}, st.uuids().map(str)),
    ({"enum": ["x", "y"], "type": "string"}, st.sampled_from(["x", "y"])),
    ({"enum": ["x y", 1, None, 2.5]}, st.sampled_from(["x y", 1, None, 2.5])),
    ({"const": True}, st.just(True)),
]
TREE: Schema = {
    "type": "object", "title": "Tree", "required": ["value"],
    "properties": {"value": {"type": "integer"},
                   "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
}  # fmt: skip
TREES = st.recursive(
    st.builds(lambda value: {"value": value}, INTEGERS),
    lambda inner: st.builds(
        lambda value, children: {"value": value, "children": children},
        INTEGERS,
        st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def cases(  # noqa: PLR0911  (one return per kind)
    draw: st.DrawFn, depth: int = 3
) -> tuple[Schema, st.SearchStrategy[Any]]:
    """A JSON Schema and what draws its values."""
    kinds = ["leaf", "leaf", "tree", "list", "map", "record", "union", "tuple"]
    kind = draw(st.sampled_from(kinds if depth else kinds[:1]))
    if kind == "leaf":
        return draw(st.sampled_from(LEAVES))
    if kind == "tree":
        return {"$ref": "#/$defs/Tree"}, TREES
    if kind == "record":
        return _record(draw, depth)
    parts = [draw(cases(depth=depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    (schema, values) = parts[0]
    if kind == "list":
        return {"type": "array", "items": schema}, st.lists(values, max_size=3)
    if kind == "map":
        plain = {"type": "object", "additionalProperties": schema}
        return plain, st.dictionaries(TEXTS, values, max_size=3)
    if kind == "tuple":
        plain = {"type": "array", "prefixItems": [each for each, _ in parts],
                 "minItems": len(parts), "maxItems": len(parts)}  # fmt: skip
        return plain, st.tuples(*(each for _, each in parts)).map(list)
    return {"anyOf": [each for each, _ in parts]}, st.one_of([each for _, each in parts])


def _record(draw: st.DrawFn, depth: int) -> tuple[Schema, st.SearchStrategy[Any]]:
    members = {
        name: draw(cases(depth=depth - 1)) for name in draw(st.sets(NAMES, min_size=1, max_size=4))
    }
    required = sorted(draw(st.sets(st.sampled_from(sorted(members)))))
    schema = {"type": "object", "title": draw(st.sampled_from(["R", "string", "a b"])),
              "properties": {name: each for name, (each, _) in members.items()},
              "required": required}  # fmt: skip
    values = st.fixed_dictionaries(
        {name: each for name, (_, each) in members.items() if name in required},
        optional={name: each for name, (_, each) in members.items() if name not in required},
    )
    return schema, values


@st.composite
def schemas_and_values(draw: st.DrawFn) -> tuple[Schema, Any]:
    schema, values = draw(cases())
    return {**schema, "$defs": {"Tree": TREE}}, draw(values)
