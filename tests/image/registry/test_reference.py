from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage.errors import OptionError
from mfimage.image.registry.reference import Reference, parse_reference, parse_tag

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("iris", "", "iris", None, None),
        ("iris:1", "", "iris", "1", None),
        ("team/iris", "", "team/iris", None, None),
        ("python:3.11-slim", "", "python", "3.11-slim", None),
        (f"python@{DIGEST}", "", "python", None, DIGEST),
        (f"python:3.11-slim@{DIGEST}", "", "python", "3.11-slim", DIGEST),
        ("localhost/iris", "localhost", "iris", None, None),
        ("localhost:5000/iris", "localhost:5000", "iris", None, None),
        ("registry.example.com/a/b/c:V_1.0", "registry.example.com", "a/b/c", "V_1.0", None),
        ("registry:5000/iris:1", "registry:5000", "iris", "1", None),
        ("10.0.0.1:5000/iris", "10.0.0.1:5000", "iris", None, None),
        ("[::1]:5000/iris:1", "[::1]:5000", "iris", "1", None),
        ("[fd00::1]:5000/iris", "[fd00::1]:5000", "iris", None, None),
        ("a__b/c-d.e--f", "", "a__b/c-d.e--f", None, None),
        ("iris:" + "t" * 128, "", "iris", "t" * 128, None),
    ],
)
def test_parses(text, registry, repository, tag, digest):
    parsed = parse_reference(text)
    expected = Reference(registry=registry, repository=repository, tag=tag, digest=digest)
    assert parsed == expected
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "empty", None),
        (" iris", "white space", None),
        ("iris:1 ", "white space", None),
        ("iris\n", "white space", None),
        (
            "https://registry.example.com/iris",
            "starts with https://",
            "'registry.example.com/iris'",
        ),
        ("Iris:1", "capital letters", "'iris:1'"),
        ("registry.example.com/Team/iris", "capital letters", "'registry.example.com/team/iris'"),
        ("iris:", "tag ''", None),
        ("iris:.1", "tag '.1'", "128"),
        ("iris:a b", "white space", None),
        ("iris:" + "t" * 129, "tag", None),
        ("iris:1:2", "tag '1:2'", None),
        ("iris@sha256:12", "digest 'sha256:12'", None),
        ("iris@" + DIGEST.replace("sha256", "md5"), "digest", None),
        ("iris@" + DIGEST.upper(), "digest", None),
        ("iris@", "digest ''", None),
        (f"@{DIGEST}", "repository is missing", None),
        (":1", "repository is missing", None),
        ("localhost:5000/", "repository is missing", None),
        ("/iris", "'' cannot be part", None),
        ("team//iris", "'' cannot be part", None),
        ("team/-iris", "'-iris' cannot be part", None),
        ("team/iris_", "'iris_' cannot be part", None),
        ("a..b", "'a..b' cannot be part", None),
        ("$HOME/iris", "capital letters", None),
        ("i$s", "'i$s' cannot be part", None),
        ("localhost:port/iris", "'port' is not a port", None),
        ("localhost:0/iris", "'0' is not a port", None),
        ("localhost:65536/iris", "'65536' is not a port", None),
        ("-bad.example/iris", "'-bad.example' is not a host name", None),
        ("0a" * 32, "an image ID", None),
        ("a/" * 150 + "b", "longer than 255", None),
        ("naïve", "cannot be part", None),
        ("iris:\u0661", "tag", None),
    ],
)
def test_refuses(text, says, hint):
    with pytest.raises(OptionError) as caught:
        parse_reference(text, field="tag")
    assert caught.value.message.startswith(f"tag: {text!r} is not an image reference: ")
    assert says in caught.value.message
    assert hint is None or hint in caught.value.hint
    assert caught.value.hint


def test_a_tag_defaults_to_latest():
    assert str(parse_tag("team/iris")) == "team/iris:latest"
    assert str(parse_tag("localhost:5000/iris:1")) == "localhost:5000/iris:1"


def test_a_tag_has_no_digest():
    with pytest.raises(OptionError, match="known only after the build") as caught:
        parse_tag(f"iris:1@{DIGEST}")
    assert caught.value.hint == f"leave out @{DIGEST}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
        ("team/iris", "docker.io/team/iris:latest"),
        ("localhost:5000/iris", "localhost:5000/iris:latest"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
    ],
)
def test_canonical_form(text, canonical):
    assert parse_reference(text).canonical == canonical
    assert str(parse_reference(canonical)) == canonical


def test_with_digest():
    pinned = parse_reference("python:3.11-slim").with_digest(DIGEST)
    assert str(pinned) == f"python:3.11-slim@{DIGEST}"


COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True).filter(
    lambda text: len(text) < 40
)


@given(
    registry=st.sampled_from(["", "localhost", "registry.example.com", "registry:5000"]),
    path=st.lists(COMPONENT, min_size=1, max_size=4),
    tag=st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.sampled_from([None, DIGEST]),
)
def test_what_is_written_is_read_again(registry, path, tag, digest):
    if not registry and len(path) > 1 and ("." in path[0] or path[0] == "localhost"):
        path = ["a", *path]
    reference = Reference(registry=registry, repository="/".join(path), tag=tag, digest=digest)
    assert parse_reference(str(reference)) == reference


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_any_text_parses_or_is_refused_in_our_words(text):
    try:
        parsed = parse_reference(text)
    except OptionError:
        return
    assert str(parsed) == text
    assert parsed.repository
