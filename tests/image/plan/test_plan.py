from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from mfimage.errors import LockError, OptionError
from mfimage.image.plan.base import BaseImage
from mfimage.image.plan.options import OPTIONS, BuildOptions
from mfimage.image.plan.plan import MOST_ARTIFACT_LAYERS, make_plan
from mfimage.image.plan.subject import function_subject
from mfimage.image.registry.reference import parse_reference
from mfimage.image.targets import TARGETS
from mfimage.image.targets.fastapi import SERVE_REQUIREMENTS, FastapiTarget
from mfimage.image.targets.ray import RayTarget
from mfimage.image.targets.target import RUNTIME_REQUIREMENTS
from mfimage.package.spec import sha256_digest
from mfimage.templating import template_text
from tests.image.sample import LOCK, RAY_LOCK, make_sample

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIGEST = "sha256:" + "0a" * 32


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path / "blobs")


def names(plan):
    return [layer.names for layer in plan.artifacts]


def test_what_runs(sample):
    plan = sample.plan()
    assert plan.entrypoint == ("/opt/venv/bin/python", "-m", "mfimage.runtime")
    assert plan.cmd == ("serve",)
    assert plan.ports == (8000,)
    assert plan.user == "1000:0"
    assert plan.workdir == "/opt/function/code"
    assert str(plan.base.reference) == "python:3.11-slim"


def test_planning_reads_nothing(sample):
    spec = sample.spec()
    shutil.rmtree(sample.blobs.folder)
    base = BaseImage(reference=parse_reference("python"), python="3.11")
    plan = make_plan(function_subject(spec), lock=LOCK, base=base, options=BuildOptions())
    assert plan.dependencies.digest == sha256_digest(LOCK)


def test_the_largest_artifact_comes_first(sample):
    sample.artifacts = {"a": b"1", "b": b"2" * 5000, "c": b"3" * 70, "d": b"4" * 90}
    assert names(sample.plan()) == [("b",), ("c",), ("d",), ("a",)]


def test_an_artifact_that_grows_a_little_keeps_its_place(sample):
    sample.artifacts = {"a": b"1" * 1000, "b": b"2" * 1010}
    before = names(sample.plan())
    sample.artifacts["a"] = b"3" * 1020
    assert names(sample.plan()) == before


def test_equal_artifacts_share_a_layer(sample):
    sample.artifacts = {"b": b"same", "a": b"same", "c": b"other"}
    plan = sample.plan()
    assert sorted(names(plan)) == [("a", "b"), ("c",)]
    assert all(len(layer.blobs) == 1 for layer in plan.artifacts)


def test_many_artifacts_do_not_exceed_what_an_engine_stacks(sample):
    sample.artifacts = {f"a{n}": str(n).encode() for n in range(200)}
    layers = sample.plan().artifacts
    assert len(layers) == MOST_ARTIFACT_LAYERS
    assert sum(len(layer.blobs) for layer in layers) == 200
    assert len(layers[-1].names) == 200 - MOST_ARTIFACT_LAYERS + 1


def test_no_artifacts(sample):
    sample.artifacts = {}
    assert sample.plan().artifacts == ()


def test_binding_again_at_another_time_plans_the_same(sample):
    plan = sample.plan()
    sample.created = "2031-01-01T00:00:00Z"
    assert sample.plan() == plan
    assert json.loads(plan.subject.files["function.json"])["lineage"]["created"] is None


def test_the_function_json_in_the_image_is_the_same_function(sample):
    plain = json.loads(sample.plan().subject.files["function.json"])
    assert plain["name"] == "predict"
    assert set(plain["artifacts"]) == {"model", "feature_names"}


@pytest.mark.parametrize("python", ["3.12", "3.12.1", "3.1", "3", "2.7.18"])
def test_a_base_of_another_python_is_refused(sample, python):
    base = BaseImage(reference=parse_reference("own/base:1"), python=python)
    with pytest.raises(OptionError) as caught:
        make_plan(function_subject(sample.spec()), lock=LOCK, base=base, options=BuildOptions())
    assert "own/base:1 has Python " + ".".join(python.split(".")[:2]) in caught.value.message
    assert "bound with Python 3.11" in caught.value.message
    assert "--base-image python:3.11-slim" in caught.value.hint


def test_a_base_for_another_platform_is_refused(sample):
    base = BaseImage(reference=parse_reference("b"), python="3.11", platform="linux/arm64")
    with pytest.raises(OptionError, match="is for linux/arm64, the image for linux/amd64"):
        make_plan(function_subject(sample.spec()), lock=LOCK, base=base, options=BuildOptions())
    plan = make_plan(
        function_subject(sample.spec()),
        lock=LOCK,
        base=base,
        options=BuildOptions(platform="linux/arm64/v8"),
    )
    assert plan.platform == "linux/arm64"


@pytest.mark.parametrize(
    ("name", "platform", "fits"),
    [
        ("own-1.0-py3-none-any.whl", "linux/arm64", True),
        ("own-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "linux/amd64", True),
        ("own-1.0-cp311-cp311-linux_x86_64.whl", "linux/amd64", True),
        ("own-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "linux/arm64", False),
        ("own-1.0-cp311-cp311-macosx_11_0_arm64.whl", "linux/arm64", False),
        ("own-1.0-cp311-cp311-macosx_11_0_x86_64.whl", "linux/amd64", False),
        ("own.whl", "linux/amd64", False),
    ],
)
def test_wheels_that_travel_have_to_fit(sample, name, platform, fits):
    sample.wheels = {name: b"wheel"}
    if fits:
        assert list(sample.plan(platform=platform).dependencies.wheels) == [name]
        return
    with pytest.raises(LockError) as caught:
        sample.plan(platform=platform)
    assert name in caught.value.message


def test_a_lock_with_a_password_is_refused(sample):
    sample.lock = LOCK + b'# index = "https://me:secret@packages.example.com/simple"\n'
    with pytest.raises(LockError) as caught:
        sample.plan()
    assert "secret" not in caught.value.message


def test_a_lock_that_is_no_text(sample):
    sample.lock = b"\xff"
    with pytest.raises(LockError, match="not UTF-8"):
        sample.plan()


def test_system_packages_of_function_and_options_come_together(sample):
    sample.system_packages = ("libgomp1", "curl")
    assert sample.plan(apt=("curl", "git")).system_packages == ("curl", "git", "libgomp1")


def test_system_packages_of_a_function_are_checked(sample):
    sample.system_packages = ("curl; rm -rf /",)
    with pytest.raises(OptionError, match="system_packages"):
        sample.plan()


def test_variables_of_the_user_win(sample):
    env = sample.plan(env={"HOME": "/data", "GREETING": "hi"}).env
    assert env["HOME"] == "/data"
    assert env["GREETING"] == "hi"
    assert env["PYTHONPATH"] == "/opt/mfimage"


def test_a_bases_port_is_not_the_functions(sample):
    base = BaseImage(reference=parse_reference("b"), python="3.11", env={"PORT": "80"})
    assert sample.plan(base=base).env["PORT"] == "8000"
    assert sample.plan(base=base, env={"PORT": "9000"}).env["PORT"] == "9000"
    assert "PORT" not in sample.plan().env


def test_a_base_for_ray_does_not_make_a_server_one_for_ray(sample):
    env = {"MFIMAGE_TARGET": "ray"}
    base = BaseImage(reference=parse_reference("b"), python="3.11", env=env)
    assert sample.plan(base=base).env["MFIMAGE_TARGET"] == "fastapi"
    assert "MFIMAGE_TARGET" not in sample.plan().env


def test_only_ids_of_secrets_are_planned(sample):
    from mfimage.image.secrets.build import Secret

    secrets = (Secret(id="netrc", source=Path("/home/me/.netrc")), Secret(id="UV_X", variable="Y"))
    plan = sample.plan(secrets=secrets)
    assert plan.secrets == ("UV_X", "netrc")
    assert "/home/me" not in repr(plan)


def test_labels(sample):
    labels = sample.plan(digest=DIGEST, labels={"a": "b"}).labels
    spec = sample.spec()
    assert labels["org.opencontainers.image.title"] == "predict"
    assert labels["org.opencontainers.image.description"] == "Run inference using the bound model."
    assert labels["org.opencontainers.image.base.name"] == "docker.io/library/python:3.11-slim"
    assert labels["org.opencontainers.image.base.digest"] == DIGEST
    assert labels["org.opencontainers.image.revision"] == spec.lineage.git_commit
    assert labels["io.mfimage.function.digest"] == spec.digest
    assert labels["io.mfimage.task"] == "MyTrainFlow/123/train/456"
    assert labels["io.mfimage.lock.digest"] == sha256_digest(LOCK)
    assert labels["io.mfimage.python"] == "3.11"
    assert labels["io.mfimage.target"] == "fastapi"
    assert json.loads(labels["io.mfimage.schema.input"]) == {"type": "object"}
    assert json.loads(labels["io.mfimage.artifacts"])["model"] == spec.artifacts["model"].digest
    assert labels["a"] == "b"
    assert not [name for name in labels if "created" in name]


def test_what_is_not_known_has_no_label(sample):
    labels = sample.plan().labels
    assert "org.opencontainers.image.base.digest" not in labels


def test_a_digest_in_the_reference_counts(sample):
    plan = sample.plan(base=f"own/base@{DIGEST}")
    assert str(plan.base.pinned) == f"own/base@{DIGEST}"
    assert plan.labels["org.opencontainers.image.base.digest"] == DIGEST


def test_labels_of_the_user_win(sample):
    labels = sample.plan(labels={"org.opencontainers.image.title": "mine"}).labels
    assert labels["org.opencontainers.image.title"] == "mine"


def test_a_schema_too_long_for_a_label_is_left_out(sample):
    sample.input_schema = {"description": "x" * 40_000}
    plan = sample.plan()
    assert "io.mfimage.schema.input" not in plan.labels
    assert b"x" * 40_000 in plan.subject.files["function.json"]


@pytest.mark.parametrize(
    ("docstring", "label"),
    [
        ("", None),
        ("One.\n\n    Two.", "One."),
        ("  A\n\tline\x00 of \x1b[1mwords\u2028.", "A line of [1mwords ."),
        ("x" * 2000, "x" * 999 + "…"),
    ],
)
def test_descriptions(sample, docstring, label):
    sample.description = docstring
    assert sample.plan().labels.get("org.opencontainers.image.description") == label


@pytest.mark.parametrize("field", ["description", "input_schema"])
def test_a_password_in_what_becomes_a_label_is_refused(sample, field):
    url = "postgres://me:secret@db/x"
    setattr(sample, field, url if field == "description" else {"default": url})
    with pytest.raises(OptionError) as caught:
        sample.plan()
    assert "secret" not in caught.value.message
    assert "docstring" in caught.value.hint


def test_a_plan_cannot_be_changed(sample):
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.plan().user = "0"


def test_an_image_for_ray(sample):
    sample.lock = RAY_LOCK
    plan = sample.plan(target="ray")
    assert plan.cmd[:3] == ("ray", "start", "--head"), "without Ray Serve it cannot serve"
    assert sample.plan(target="ray", parts=("serve",)).cmd == ("serve",)
    assert plan.labels["io.mfimage.ray-version"] == "2.60.0"
    assert plan.labels["io.mfimage.python-version"] == plan.base.python
    assert plan.env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & plan.env.keys()


def test_an_image_without_ray_says_nothing_of_it(sample):
    assert not [name for name in sample.plan().labels if "ray" in name]


def test_requirements_are_those_of_the_distribution():
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert list(SERVE_REQUIREMENTS) == project["optional-dependencies"]["serve"]
    assert set(RUNTIME_REQUIREMENTS) <= set(project["dependencies"])
    assert FastapiTarget().requirements == RUNTIME_REQUIREMENTS + SERVE_REQUIREMENTS
    extra = project["optional-dependencies"]["ray"]
    assert {*RUNTIME_REQUIREMENTS, *extra} == set(RayTarget().requirements)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_a_target_has_what_it_names(sample, target):
    """A template, a check, and the labels that images are checked for."""
    assert template_text(target.template)
    assert callable(resolve_name(target.check))
    labels = target().labels(lock=RAY_LOCK, python="3.11.7")
    assert tuple(labels) == target.label_names
    assert {field.name for field in dataclasses.fields(target)} <= {o.name for o in OPTIONS}


def test_labels_record_the_options_of_an_image_for_ray(sample):
    sample.lock = RAY_LOCK
    labels = sample.plan(target="ray", parts=("serve", "data")).labels
    assert RayTarget.options_from(labels) == {"parts": ("data", "serve")}
    assert RayTarget.options_from({}) == {"parts": ()}
