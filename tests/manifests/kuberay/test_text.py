"""What a user wrote comes out of YAML, and of Kubernetes, as it went in."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfimage.manifests.kuberay.manifest import raycluster
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.text import at, literal, number, string, word
from mfimage.templating import Quoted
from tests.manifests.kuberay.samples import IMAGE, parsed, pods_of

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def expanded(text: str) -> str:
    """Resolve a container's variable as Kubernetes does, with no variable defined."""
    out, rest = "", text
    while rest:
        taken = 2 if rest.startswith("$$") else 1
        out, rest = out + rest[0], rest[taken:]
    return out


@given(TEXT)
@example("a: b # c")
@example("- x\n---\n...\n")
@example("\u2028\u2029\x85\ufeff\x7f\x1b")
@example("🐍 \U0010ffff \ufffe")
@example("no")
@example('"\\')
def test_a_string_stays_what_it_is(value):
    text = string(value)
    assert yaml.safe_load(text) == value
    assert yaml.safe_load(f"a:\n  b: {text} # c\n  d: [{text}]") == {
        "a": {"b": value, "d": [value]}
    }
    assert len(text.splitlines()) == 1


@given(TEXT)
@example("$(HOME) $$(HOME) $$$ $")
def test_a_variable_is_taken_literally(value):
    assert expanded(yaml.safe_load(literal(value))) == value


@settings(deadline=None, max_examples=30)
@given(st.text("ab$()", max_size=30), TEXT.filter(lambda text: "://" not in text))
def test_variables_come_out_of_a_manifest(first, second):
    cluster = ClusterOptions(env={"A": first, "B": second})
    for pod in pods_of(parsed(raycluster(IMAGE, cluster))).values():
        env = {each["name"]: expanded(each["value"]) for each in pod["containers"][0]["env"]}
        assert env == {"RAY_AUTH_MODE": "token", "A": first, "B": second}


@pytest.mark.parametrize("value", ["no", "On", "null", "a b", "1.0", "", "a:", "a\n"])
def test_what_needs_quotes_is_no_word(value):
    with pytest.raises(ValueError, match="needs quotes"):
        word(value)


@given(st.floats(0, 1e9) | st.integers(0, 10**9))
def test_numbers_are_numbers(value):
    assert yaml.safe_load(f"a: {number(value)}")["a"] == pytest.approx(value)


def test_only_what_was_rendered_is_indented():
    assert at(Quoted("a:\n  b\n"), 2) == "a:\n    b"
    with pytest.raises(TypeError, match="not rendered"):
        at("a:\n  b", 2)
