"""What a user wrote comes out of YAML, and of Kubernetes, as it went in."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfimage.manifests.kuberay import raycluster
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.text import to_yaml
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
@example('"\\')
@example("a\n\n b \nc\n\n")
@example("a\n#b")
def test_a_string_stays_what_it_is(value):
    document = {"a": {"b": value, "d": [value, {"e": value}]}, "f": 1}
    assert yaml.safe_load(to_yaml(document)) == document


@pytest.mark.parametrize(
    "value", ["no", "On", "y", "N", "null", "~", "1.0", "2.60", "1e3", "0x1", "010", "0o7", "1_0",
              "2026-11-26", "1:30", ".inf", ""]
)  # fmt: skip
def test_what_another_parser_may_not_read_as_a_string_is_quoted(value):
    """Of Kubernetes, whose YAML has more booleans and numbers than PyYAML's."""
    assert to_yaml({"a": value, "b": [value]}) == f'a: "{value}"\nb:\n- "{value}"\n'


def test_lines_are_written_as_lines():
    assert to_yaml({"a": "b: 1\nc: größe\n"}) == "a: |\n  b: 1\n  c: größe\n"


def test_no_line_is_folded_and_nothing_is_an_alias():
    same = {"cpu": "2"}
    text = to_yaml({"a": "b c " * 100, "requests": same, "limits": same})
    assert len(text.splitlines()) == 5
    assert "&" not in text


def test_entries_without_a_value_are_left_out():
    assert to_yaml({"a": None, "b": {"c": None}, "d": False, "e": []}) == (
        "b: {}\nd: false\ne: []\n"
    )


@settings(deadline=None, max_examples=30)
@given(st.text("ab$()", max_size=30), TEXT.filter(lambda text: "://" not in text))
@example("$(HOME) $$(HOME) $$$ $", "")
def test_variables_come_out_of_a_manifest(first, second):
    cluster = ClusterOptions(env={"A": first, "B": second})
    for pod in pods_of(parsed(raycluster.write(IMAGE, cluster))).values():
        env = {each["name"]: expanded(each["value"]) for each in pod["containers"][0]["env"]}
        assert env == {"RAY_AUTH_MODE": "token", "A": first, "B": second}


@given(st.floats(0, 1e9) | st.integers(0, 10**9))
def test_numbers_are_numbers(value):
    assert yaml.safe_load(to_yaml({"a": value}))["a"] == pytest.approx(value)
    assert to_yaml({"a": 2.0}) == "a: 2\n"
