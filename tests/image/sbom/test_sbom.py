"""The SBOM: valid, equal bytes for equal images, and no credential in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft7Validator

from mfimage.image.plan.layers import layer_files, sbom_file
from tests.image.sample import Sample, contents, make_sample

FILES = "https://files.example.com"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def wheel(where: str, digit: str) -> str:
    return f'{{ {where}, hashes = {{ sha256 = "{digit * 64}" }} }}'


def package(name: str, version: str, *lines: str) -> str:
    return "\n".join(["[[packages]]", f'name = "{name}"', f'version = "{version}"', *lines, ""])


NUMPY = 'url = "https://TOKEN12345@files.example.com/numpy-2.1.0-py3-none-any.whl?sig=SECRETQUERY"'
SEVERAL = (
    wheel(f'url = "{FILES}/several-1.0-py3-none-any.whl"', "b"),
    wheel(f'url = "{FILES}/several-1.0-cp311-cp311-linux_x86_64.whl"', "c"),
)
OURS = wheel('path = "wheels/ours-0.1-py3-none-any.whl"', "d")
INDEX = 'index = "https://someone@index.example.com/simple?sig=SECRETQUERY"'
GIT = f'url = "https://ghtoken@git.example.com/team/fromgit", commit-id = "{COMMIT}"'
LOCK = "\n".join(
    [
        'lock-version = "1.0"\ncreated-by = "test"',
        package("numpy", "2.1.0", INDEX, f"wheels = [{wheel(NUMPY, 'a')}]"),
        package("several", "1.0", f"wheels = [{', '.join(SEVERAL)}]"),
        package("ours", "0.1", f"wheels = [{OURS}]"),
        package("fromgit", "3", f'vcs = {{ type = "git", {GIT} }}'),
    ]
).encode()


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    sample = make_sample(tmp_path / "blobs")
    sample.lock = LOCK
    sample.system_packages = ("git=1:2.39.5-0+deb12u2", "libgomp1:amd64")
    return sample


def sbom(sample: Sample, **options: Any) -> bytes:
    plan = sample.plan(base="registry.example.com/base/python:3.11", digest=f"sha256:{'e' * 64}")
    return sbom_file(layer_files(plan, sample.blobs.path)["code"])


def found(data: bytes) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(data)["components"]}


def properties(part: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in part["properties"]}


# The package that jsonschema has for it compiles a grammar for 1.4 s when it is imported, which
# each process of Ray would do.
@Draft7Validator.FORMAT_CHECKER.checks("iri-reference")
def is_iri_reference(text: object) -> bool:
    return not re.search(r'[\s<>"{}|\\^`]|%(?![0-9A-Fa-f]{2})', str(text))


def test_it_is_valid(sample: Sample) -> None:
    text = sbom(sample).decode()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    error = validator.validate_str(text)
    assert error is None, error
    url = "https://files.example.com/numpy-2.1.0-py3-none-any.whl"
    assert validator.validate_str(text.replace(url, "https://files.example.com/a b")), "not an IRI"


def test_it_lists_what_is_in_the_image(sample: Sample) -> None:
    parts = found(sbom(sample))
    numpy = parts["numpy"]
    assert (numpy["purl"], numpy["version"]) == ("pkg:pypi/numpy@2.1.0", "2.1.0")
    assert numpy["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert numpy["externalReferences"][0]["url"] == (
        "https://files.example.com/numpy-2.1.0-py3-none-any.whl"
    )
    assert properties(numpy)["mfimage:index"] == "https://index.example.com/simple"
    # Nobody knows which of the two is installed.
    assert "hashes" not in parts["several"]
    assert len(parts["several"]["externalReferences"]) == 2
    assert properties(parts["ours"])["mfimage:source"] == "travels with the function"
    (git,) = parts["fromgit"]["externalReferences"]
    assert (git["type"], git["url"]) == ("vcs", "https://git.example.com/team/fromgit")
    assert git["comment"] == COMMIT
    assert parts["git"]["purl"].startswith("pkg:deb/debian/git@1")
    assert parts["libgomp1"]["purl"] == "pkg:deb/debian/libgomp1?arch=amd64"
    assert parts["registry.example.com/base/python"]["hashes"][0]["content"] == "e" * 64
    spec = sample.spec()
    assert parts["model"]["hashes"][0]["content"] == spec.artifacts["model"].hex
    assert parts["predict.py"]["type"] == "file"


def test_it_says_where_the_function_comes_from(sample: Sample) -> None:
    about = json.loads(sbom(sample))["metadata"]
    lineage = properties(about)
    assert lineage["mfimage:flow"] == "MyTrainFlow"
    assert lineage["mfimage:pathspec"] == "MyTrainFlow/123/train/456"
    assert lineage["mfimage:git.commit"] == COMMIT
    assert properties(about["component"])["mfimage:function.digest"] == sample.spec().digest
    assert "timestamp" not in about


def test_no_credential_of_a_url_gets_in(sample: Sample) -> None:
    """Also user names, which may be tokens, and queries, which may be signatures."""
    text = sbom(sample).decode()
    for secret in ("someone", "TOKEN12345", "SECRETQUERY", "ghtoken"):
        assert secret not in text


def test_equal_images_have_equal_bytes(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sbom(sample)
    assert sbom(sample) == first, "what is cached is the same"
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "elsewhere"))
    sample.created = "2031-01-01T00:00:00Z"
    assert sbom(sample) == first
    sample.code = {"predict.py": b"def predict(data, params):\n    return {'x': 1}\n"}
    other = sbom(sample)
    assert json.loads(other)["serialNumber"] != json.loads(first)["serialNumber"]


def test_a_damaged_cache_is_made_anew(sample: Sample, cache: Path) -> None:
    first = sbom(sample)
    (known,) = (cache / "sboms").iterdir()
    known.write_text("[{")
    assert sbom(sample) == first


def test_it_is_in_the_context(sample: Sample) -> None:
    data = contents(sample)["layers/code/opt/function/sbom.cdx.json"]
    assert json.loads(data)["bomFormat"] == "CycloneDX"
