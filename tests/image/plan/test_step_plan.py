"""What an image of a step is, beside one of a function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import OptionError
from mfimage.image.plan.base import BaseImage, default_base
from mfimage.image.plan.layers import code_files, runtime_files, sbom_file
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import ImagePlan, make_plan
from mfimage.image.plan.subject import STEP, Subject
from tests.image.sample import Sample, archive, make_sample

DIGEST = "sha256:" + "0a" * 32


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path / "blobs")


def plan(sample: Sample, *, python: str = "3.11.2", **more: Any) -> ImagePlan:
    subject = Subject(
        kind=STEP, name="train", digest=DIGEST, environment=sample.spec().environment, **more
    )
    base = BaseImage(reference=default_base("3.11"), python=python)
    return make_plan(subject, lock=sample.lock, base=base, options=BuildOptions(target="step"))


def test_nothing_is_in_the_way_of_metaflows_command(sample: Sample) -> None:
    made = plan(sample)
    assert made.entrypoint == ()
    assert made.env["METAFLOW_SKIP_INSTALL_DEPENDENCIES"] == "1"
    assert not made.env["PYTHONDONTWRITEBYTECODE"]  # what a task unpacks is compiled once
    assert (made.workdir, made.workdir_mode, made.user) == ("/metaflow", 0o1777, "1000:0")
    assert made.ports == ()


def test_an_image_of_an_environment_has_no_code_and_no_function(sample: Sample) -> None:
    made = plan(sample)
    files = {file.path for file in code_files(made, sample.blobs.path)}
    assert files == {"opt/function/pylock.toml", "opt/function/sbom.cdx.json"}
    assert made.artifacts == ()


def test_a_build_of_a_step_has_its_code(sample: Sample) -> None:
    code = sample.blobs.put(archive({"train.py": b"flow = 1\n"}))
    files = {file.path for file in code_files(plan(sample, code={"code": code}), sample.blobs.path)}
    assert "opt/function/code/train.py" in files


def test_its_labels_and_sbom_say_step(sample: Sample) -> None:
    made = plan(sample, labels={"flow": "TrainFlow", "empty": ""}, lineage={"flow": "TrainFlow"})
    ours = {name for name in made.labels if name.startswith("io.mfimage.")}
    assert ours == {
        f"io.mfimage.{name}"
        for name in (
            "step.name", "step.digest", "flow", "python", "lock.digest", "target", "version"
        )
    }  # fmt: skip
    assert made.labels["io.mfimage.step.digest"] == DIGEST
    sbom = json.loads(sbom_file(code_files(made, sample.blobs.path)))
    assert sbom["metadata"]["component"]["bom-ref"] == "step"
    assert {"name": "mfimage:step.digest", "value": DIGEST} in sbom["metadata"]["component"][
        "properties"
    ]
    assert sbom["metadata"]["properties"] == [{"name": "mfimage:flow", "value": "TrainFlow"}]


def test_the_extension_is_whole(sample: Sample) -> None:
    """`from metaflow import docker` must work in the container, and so must binding."""
    paths = {file.path.removeprefix("opt/mfimage/") for file in runtime_files(plan(sample))}
    assert {
        "metaflow_extensions/mfimage/plugins/mfextinit_mfimage.py",
        "metaflow_extensions/mfimage/toplevel/mfimage_toplevel.py",
        "mfimage/bind.py", "mfimage/steps/decorators.py", "mfimage/steps/environment.py",
    } <= paths  # fmt: skip
    assert not any(path.startswith(("mfimage/cli", "mfimage/image")) for path in paths)


def test_a_base_of_another_python_is_refused(sample: Sample) -> None:
    with pytest.raises(OptionError, match=r"but train needs Python 3\.11"):
        plan(sample, python="3.13.1")


@pytest.mark.parametrize("text", ["team/steps:1", "team/steps@" + DIGEST])
def test_a_step_registry_is_a_repository(text: str, tmp_path: Path) -> None:
    from mfimage.image.plan.settings import read_settings

    (tmp_path / "pyproject.toml").write_text(f'[tool.mfimage]\nstep-registry = "{text}"\n')
    with pytest.raises(OptionError, match=r"step-registry: .* names an image") as caught:
        read_settings(tmp_path)
    assert "team/steps" in str(caught.value.hint)
