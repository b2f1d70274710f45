"""What is suggested to type."""

from __future__ import annotations

import shlex
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage.views.commands import how_to_run, sample

FINITE = st.integers(-1000, 1000) | st.floats(-1000, 1000)


@given(low=FINITE, span=st.floats(0.001, 1000), open_low=st.booleans(), open_high=st.booleans())
def test_a_number_is_within_its_bounds(
    low: float, span: float, open_low: bool, open_high: bool
) -> None:
    """A curl with 0.0 was suggested for lengths that must be more than that."""
    names = (
        "exclusiveMinimum" if open_low else "minimum",
        "exclusiveMaximum" if open_high else "maximum",
    )
    schema: dict[str, Any] = {"type": "number", names[0]: low, names[1]: low + span}
    jsonschema.validate(sample(schema), schema)
    for name in names:
        half = {key: value for key, value in schema.items() if key != name}
        jsonschema.validate(sample(half), half)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
        {"type": "integer", "exclusiveMaximum": -3},
        {"type": "string", "minLength": 3},
        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2},
    ],
)
def test_what_is_short_or_small_is_within_its_limits(schema: dict[str, Any]) -> None:
    jsonschema.validate(sample(schema), schema)


@pytest.mark.parametrize("target", ["fastapi", "ray", "step", "other"])
@pytest.mark.parametrize("name", ["oci:a b;id", "iris:1;id"])
def test_no_label_or_name_becomes_a_command_of_its_own(target: str, name: str) -> None:
    """The line to push a folder had the title as it is in the image's label."""
    evil = "x;id $(id)"
    lines = how_to_run(name, target=target, title=evil, function=evil, record={"a": "';id"})
    for _, line in lines:
        tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
        tokens.whitespace_split = True
        assert not {";", "&", "|"} & set(tokens), line
