"""Whether the values of one JSON Schema are valid by another: all, perhaps some, or none.

It compares what a function returns with what the next one takes, in the schemas that pydantic and
Avro give. Where keywords such as ``pattern`` differ, a value may fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import join_path

FITS, MAY_FIT, NEVER_FITS = "fits", "may fit", "never fits"
_ORDER = (FITS, MAY_FIT, NEVER_FITS)
_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
_NOTES = {
    "$defs", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "discriminator", "contentEncoding", "contentMediaType", "$comment", "$schema", "$id",
}  # fmt: skip
_BOUNDS = (
    ("minimum", "maximum"),
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
)
# Known to be satisfied only where both schemas state the same.
_EQUAL = (
    "format", "pattern", "multipleOf", "exclusiveMinimum", "exclusiveMaximum", "uniqueItems",
    "contains", "propertyNames", "patternProperties", "dependentRequired", "dependentSchemas",
    "unevaluatedProperties", "unevaluatedItems", "not", "if", "then", "else", "allOf", "$ref",
)  # fmt: skip
_SHOWN = 3  # alternatives of a type


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A place where values are not valid, or may not be."""

    path: str  # as in the errors of records: ``result.items[].age``
    given: str  # the type that is there, for people
    wanted: str


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether the values of a schema are valid by another; ``misfits`` are the places if not."""

    verdict: str = FITS
    misfits: tuple[Misfit, ...] = ()

    def at_worst(self, verdict: str) -> Fit:
        """Return this fit, or one of the same places that is not worse."""
        return Fit(verdict=min(self.verdict, verdict, key=_ORDER.index), misfits=self.misfits)


def fit(given: Mapping[str, Any], wanted: Mapping[str, Any], *, path: str) -> Fit:
    """Compare the schema of what a function returns with that of what another takes.

    A returned object has no other members than its schema lists, unless that allows more: so are
    results written. A list or a mapping never fits if its items never do, though it may be empty.
    """
    return _Comparison(given, wanted).of(given, wanted, path)


def _together(fits: Iterable[Fit]) -> Fit:
    """Return the fit of a value that must be valid in all of these places."""
    fits = list(fits)
    verdict = max((each.verdict for each in fits), key=_ORDER.index, default=FITS)
    places = (place for each in fits if each.verdict == verdict for place in each.misfits)
    return Fit(verdict=verdict, misfits=tuple(dict.fromkeys(places)))


class _Comparison:
    def __init__(self, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        self._given, self._wanted = given, wanted
        self._open: set[tuple[str, str]] = set()

    def of(self, given: Any, wanted: Any, path: str) -> Fit:
        pair = (json.dumps(given, sort_keys=True), json.dumps(wanted, sort_keys=True))
        if pair in self._open:  # a type that contains itself: the rest of it decides
            return Fit()
        self._open.add(pair)
        ours = list(_alternatives(given, self._given))
        theirs = list(_alternatives(wanted, self._wanted))
        fits = [self._accepted(each, theirs, wanted, path) for each in ours]
        self._open.remove(pair)
        if len(fits) == 1:
            return fits[0]
        verdicts = {each.verdict for each in fits}
        if verdicts == {NEVER_FITS}:
            return self._misfit(NEVER_FITS, given, wanted, path)
        places = dict.fromkeys(place for each in fits for place in each.misfits)
        inner = tuple(place for place in places if place.path != path)
        if len(inner) < len(places):  # an alternative as a whole
            return self._misfit(MAY_FIT, given, wanted, path)
        return Fit(verdict=MAY_FIT, misfits=inner) if inner else Fit()

    def _accepted(self, given: Any, theirs: list[Any], wanted: Any, path: str) -> Fit:
        """Compare a schema with alternatives, of which one must accept the value."""
        fits = [self._simple(given, each, path) for each in theirs]
        verdict = min((each.verdict for each in fits), key=_ORDER.index, default=NEVER_FITS)
        near = [
            each
            for each, schema in zip(fits, theirs, strict=True)
            if _types(given) & _types(schema) and each.verdict == verdict
        ]
        if verdict == FITS:
            return Fit()
        return near[0] if len(near) == 1 else self._misfit(verdict, given, wanted, path)

    def _misfit(self, verdict: str, given: Any, wanted: Any, path: str) -> Fit:
        have, want = describe(given, self._given), describe(wanted, self._wanted)
        return Fit(verdict=verdict, misfits=(Misfit(path=path, given=have, wanted=want),))

    def _simple(self, given: Any, wanted: Any, path: str) -> Fit:
        """Compare two schemas without alternatives."""
        if given is False or wanted in (True, {}):
            return Fit()
        given = {} if given is True else given
        if wanted is False:
            return self._misfit(NEVER_FITS, given, wanted, path)
        types, accepted = _types(given), _types(wanted)
        if not types & accepted:
            return self._misfit(NEVER_FITS, given, wanted, path)
        if "const" in given:
            return self._constant(given, wanted, path)
        if types - accepted or "type" not in given or "const" in wanted or "allOf" in given:
            return self._misfit(MAY_FIT, given, wanted, path)
        verdicts = [_bounded(given, wanted, *names) for names in _BOUNDS]
        if any(given.get(key) != wanted[key] for key in _EQUAL if wanted.get(key)):
            verdicts.append(MAY_FIT)
        worst = max(verdicts, key=_ORDER.index)
        fits = [] if worst == FITS else [self._misfit(worst, given, wanted, path)]
        if "object" in types:
            fits += self._members(given, wanted, path)
        if "array" in types:
            fits += self._items(given, wanted, path)
        return _together(fits)

    def _constant(self, given: Any, wanted: Any, path: str) -> Fit:
        if "const" in wanted:
            same = json.dumps(given["const"]) == json.dumps(wanted["const"])
            return Fit() if same else self._misfit(NEVER_FITS, given, wanted, path)
        return Fit() if set(wanted) == {"type"} else self._misfit(MAY_FIT, given, wanted, path)

    def _members(self, given: Any, wanted: Any, path: str) -> Iterator[Fit]:
        ours, theirs = given.get("properties", {}), wanted.get("properties", {})
        others = given.get("additionalProperties", "properties" not in given)
        more = wanted.get("additionalProperties", True)
        always, needed = set(given.get("required", ())), set(wanted.get("required", ()))
        for name in dict.fromkeys([*ours, *theirs, *sorted(needed)]):
            place = join_path(path, name)
            have, want = ours.get(name, others), theirs.get(name, more)
            if have is False:
                if name in needed:
                    yield self._absent(NEVER_FITS, want, place)
                continue
            found = self.of(have, want, place)
            if name not in ours and name not in needed:
                found = found.at_worst(MAY_FIT)  # a mapping need not have it
            yield found
            if name in needed - always and found.verdict == FITS:
                yield self._absent(MAY_FIT, want, place)
        if others is not False:
            found = self.of(others, more, f"{path}[...]")
            decides = not ours and not theirs and more is not False
            yield found if decides else found.at_worst(MAY_FIT)

    def _absent(self, verdict: str, wanted: Any, path: str) -> Fit:
        given = "nothing" if verdict == NEVER_FITS else "a value or nothing"
        want = describe(wanted, self._wanted)
        return Fit(verdict=verdict, misfits=(Misfit(path=path, given=given, wanted=want),))

    def _items(self, given: Any, wanted: Any, path: str) -> Iterator[Fit]:
        ours, theirs = given.get("prefixItems", ()), wanted.get("prefixItems", ())
        rest, more = given.get("items", True), wanted.get("items", True)
        known = max(len(ours), len(theirs))
        size = given.get("maxItems", known + 1)
        for index in range(min(known, size)):
            have = ours[index] if index < len(ours) else rest
            want = theirs[index] if index < len(theirs) else more
            yield self.of(have, want, f"{path}[{index}]")
        if size > known:
            found = self.of(rest, more, f"{path}[]")
            yield found.at_worst(MAY_FIT) if known or more is False else found


def _alternatives(
    schema: Any, root: Mapping[str, Any], seen: tuple[str, ...] = ()
) -> Iterator[Any]:
    """Yield schemas without references and unions; a value is valid by one of them."""
    if isinstance(schema, bool):
        yield schema
        return
    schema = {key: value for key, value in schema.items() if key not in _NOTES}
    parts: Iterable[Any] = ()
    if "$ref" in schema and schema["$ref"] not in seen:
        name = schema.pop("$ref")
        parts, seen = [_found(name, root)], (*seen, name)
    elif "anyOf" in schema or "oneOf" in schema:
        parts = schema.pop("anyOf" if "anyOf" in schema else "oneOf")
    elif len(schema.get("allOf", ())) == 1:
        parts = schema.pop("allOf")
    elif "enum" in schema:
        parts = [{"const": value} for value in schema.pop("enum")]
        schema = {}
    elif isinstance(schema.get("type"), list):
        parts = [{"type": each} for each in schema.pop("type")]
    else:
        yield schema
        return
    for part in parts:
        for each in _alternatives(part, root, seen):
            if each is False:
                yield False
            else:
                yield from _alternatives({**schema, **({} if each is True else each)}, root, seen)


def _found(name: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for key in name.removeprefix("#").split("/")[1:]:
        found = found.get(key.replace("~1", "/").replace("~0", "~"), {"$ref": name})
    return found


def _types(schema: Any) -> set[str]:
    """Return the types of a schema's values; a number may be an integer."""
    if isinstance(schema, bool):
        return _TYPES if schema else set()
    if "const" in schema:
        names = {
            type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string",
            list: "array", dict: "object",
        }  # fmt: skip
        return {names[type(schema["const"])]}
    kind = schema.get("type")
    if kind is None:
        return _TYPES
    return {"number", "integer"} if kind == "number" else {kind}


def _bounded(given: Any, wanted: Any, lowest: str, highest: str) -> str:
    ours = given.get(lowest, -math.inf), given.get(highest, math.inf)
    theirs = wanted.get(lowest, -math.inf), wanted.get(highest, math.inf)
    if ours[0] > theirs[1] or ours[1] < theirs[0]:
        return NEVER_FITS
    return FITS if theirs[0] <= ours[0] and ours[1] <= theirs[1] else MAY_FIT


def describe(schema: Any, root: Mapping[str, Any]) -> str:
    """Return a schema as a type, in a few words."""
    names = [*dict.fromkeys(_name(each, root) for each in _alternatives(schema, root))]
    more = f" or {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return " or ".join(names[:_SHOWN]) + more or "nothing"


_LIMITS = (
    ("format", "format"), ("pattern", "pattern"), ("minimum", "at least"), ("maximum", "at most"),
    ("exclusiveMinimum", "above"), ("exclusiveMaximum", "below"), ("minLength", "length at least"),
    ("maxLength", "length at most"), ("minItems", "length at least"),
    ("maxItems", "length at most"),
)  # fmt: skip


def _name(schema: Any, root: Mapping[str, Any]) -> str:
    if schema is False:
        return "nothing"
    if schema is True:
        return "any value"
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    name = str(schema.get("type", "any value"))
    items = schema.get("items")
    if name == "array" and items and "$ref" not in json.dumps(items):  # it may contain itself
        name = f"array of {describe(items, root)}"
    limits = [f"{label} {schema[key]}" for key, label in _LIMITS if key in schema]
    return f"{name} ({', '.join(limits)})" if limits else name
