from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfimage.errors import PackageError
from mfimage.package.spec import (
    ArtifactRef,
    BlobRef,
    EnvironmentSpec,
    Example,
    FunctionSpec,
    Lineage,
    parse_spec,
    sha256_of,
)
from tests.function.test_json import json_values, text
from tests.support.packages import make_spec

HEX = "0123456789abcdef"
REF = BlobRef(digest="sha256:" + "a" * 64, size=1)

objects = st.dictionaries(text, json_values, max_size=3)
digests = st.text(HEX, min_size=64, max_size=64).map("sha256:".__add__)
sizes = st.integers(0, 2**50)
known = {field.name for cls in (FunctionSpec, Lineage) for field in dataclasses.fields(cls)}
unknown = st.dictionaries(
    text.filter(lambda key: key not in {"checksum", *known}), json_values, max_size=2
)
blobs = st.builds(BlobRef, digest=digests, size=sizes)
maybe = st.none() | text
specs = st.builds(
    FunctionSpec,
    name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", fullmatch=True),
    entrypoint=text, task=text, code=blobs, kind=text, batch=st.booleans(), description=text,
    input_schema=objects, output_schema=objects, parameter_schema=objects, parameters=objects,
    schemas=st.dictionaries(text, objects, max_size=2), script=maybe,
    examples=st.lists(st.builds(Example, input=json_values, output=json_values)).map(tuple),
    artifacts=st.dictionaries(
        text,
        st.builds(ArtifactRef, digest=digests, size=sizes, encoding=text, type=text, info=objects),
        max_size=2,
    ),
    environment=st.builds(
        EnvironmentSpec, python=text, platform=text, source=text, lock=blobs,
        wheels=st.dictionaries(st.just("a-1-py3-none-any.whl"), blobs),
        system_packages=st.lists(text, max_size=2).map(tuple),
    ),
    lineage=st.builds(
        Lineage, flow=text, run=text, step=text, task=text, user=maybe, metaflow_version=maybe,
        git_commit=maybe, created=maybe, unknown=unknown,
    ),
    schema_version=st.sampled_from(["1.0", "1.7", "1"]),
    unknown=unknown,
)  # fmt: skip


@given(specs)
@settings(max_examples=60)
def test_what_is_written_is_read_again(spec: FunctionSpec) -> None:
    data = spec.to_json()
    again = parse_spec(data, where="x")
    assert again == spec
    assert again.to_json() == data
    assert again.digest == spec.digest
    later = replace(spec, lineage=replace(spec.lineage, created="2030-01-01T00:00:00Z"))
    assert later.digest == spec.digest, "the time of binding is no part of it"
    assert ("schemas" in json.loads(data)) == bool(spec.schemas), "digests of before stay"


def whole(**changes: Any) -> dict[str, Any]:
    plain = make_spec(REF, REF).to_dict()
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = plain
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return plain


def written(plain: dict[str, Any]) -> bytes:
    """Write as a newer mfimage of the same major version would."""
    plain = {**plain, "checksum": sha256_of(plain)}
    return json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def test_unknown_keys_are_kept_and_belong_to_the_digest() -> None:
    plain = whole(schema_version="1.9", color="red", unknown=1, code__mirror=["x"])
    spec = parse_spec(written(plain), where="x")
    assert spec.unknown == {"color": "red", "unknown": 1}
    assert spec.code.unknown == {"mirror": ["x"]}
    assert spec.to_dict() == plain
    other = parse_spec(written(whole(schema_version="1.9", color="blue")), where="x")
    assert spec.digest != other.digest
    assert replace(spec, description="edited").to_dict()["color"] == "red"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "3.0"}, "schema_version 3.0 is newer than this mfimage reads (2.x)"),
        ({"schema_version": "2.0"}, "parts: missing"),
        ({"schema_version": "0.9"}, "schema_version 0.9 is older than this mfimage reads (1.x)"),
        ({"schema_version": ...}, "schema_version: expected a version, got None"),
        ({"schema_version": 1.0}, "schema_version: expected a version, got 1.0"),
        ({"schema_version": "²"}, "schema_version: expected a version, got '²'"),
        ({"name": "../x"}, "name: '../x' is not a function name"),
        ({"name": "a" * 64}, "is not a function name"),
        ({"name": ...}, "name: missing"),
        ({"lineage__run": ...}, "lineage.run: missing"),
        ({"lineage__run": 5}, "lineage.run: expected str, got 5"),
        ({"lineage": []}, "lineage: expected an object, got []"),
        ({"batch": 1}, "batch: expected bool, got 1"),
        ({"code__size": True}, "code.size: expected int, got True"),
        ({"code__digest": "sha256:XY"}, "code: digest: expected sha256:<64 hex digits>"),
        ({"examples": {"a": 1}}, "examples: expected a list, got {'a': 1}"),
        ({"examples": [{"input": 1}]}, "examples[0].output: missing"),
        ({"artifacts": []}, "artifacts: expected an object, got []"),
        ({"artifacts": {"model": REF.to_dict()}}, "artifacts.model.encoding: missing"),
        ({"environment__system_packages": [1]}, "system_packages[0]: expected str, got 1"),
        (
            {"environment__wheels": {"../a.whl": REF.to_dict()}},
            "environment.wheels: '../a.whl' is not a wheel's name",
        ),
    ],
    ids=str,
)
def test_a_file_that_is_wrong_says_which_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse_spec(written(whole(**changes)), where="/x/function.json")
    assert caught.value.message.startswith("/x/function.json: ")
    assert message in caught.value.message


def test_a_newer_major_version_says_what_to_install() -> None:
    with pytest.raises(PackageError) as caught:
        parse_spec(b'{"schema_version": "3.1", "whatever": 1}', where="x")
    assert caught.value.hint == "install the mfimage that wrote it: pip install 'mfimage>=3'"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000, b"9" * 5000],
    ids=lambda data: repr(data[:9]),
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(PackageError, match=r"x: (not JSON|expected an object)"):
        parse_spec(data, where="x")


def test_every_changed_byte_is_noticed() -> None:
    """Even in ``lineage.created``, which the digest leaves out, and in white space."""
    data = make_spec(REF, REF).to_json()
    changed = bytearray(data)
    for position, byte in enumerate(data):
        for other in {byte ^ 1, byte ^ 0xFF, ord(" "), ord("\t"), ord("0"), ord("a")} - {byte}:
            changed[position] = other
            with pytest.raises(PackageError):
                parse_spec(bytes(changed), where="x")
        changed[position] = byte
    for cut in range(0, len(data), 7):
        with pytest.raises(PackageError):
            parse_spec(data[:cut], where="x")
