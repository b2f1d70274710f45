from __future__ import annotations

import ast
import tracemalloc
from pathlib import Path

import pytest

from mfimage.errors import PackageError
from mfimage.image.docker.render import context_files, render, write_context
from mfimage.image.plan.layers import layer_files
from mfimage.package.spec import BlobRef
from tests.image.sample import archive, contents, make_sample


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path / "blobs")


def test_what_is_in_it(sample):
    sample.wheels = {"own-1.0-py3-none-any.whl": b"wheel"}
    plan = sample.plan()
    found = contents(sample, plan)
    model = plan.artifacts[0].blobs[0].hex
    assert found["Dockerfile"].decode() == render(plan)
    assert found["build/lock/pylock.toml"] == sample.lock
    assert found["build/lock/wheels/own-1.0-py3-none-any.whl"] == b"wheel"
    assert found["build/uv.txt"].startswith(b"uv==")
    assert (
        found[f"layers/artifact-{model[:16]}/opt/function/blobs/sha256/{model}"]
        == sample.artifacts["model"]
    )
    assert found["layers/code/opt/function/code/predict.py"] == sample.code["predict.py"]
    assert found["layers/code/opt/function/function.json"] == plan.subject.files["function.json"]
    assert b"__version__" in found["layers/runtime/opt/mfimage/mfimage/__init__.py"]


def test_only_what_runs_in_an_image_goes_along(sample):
    ours = {
        name.removeprefix("layers/runtime/opt/mfimage/")
        for name in contents(sample)
        if name.startswith("layers/runtime/")
    }
    assert {
        "mfimage/errors.py",
        "mfimage/function/decorator.py",
        "mfimage/package/spec.py",
        "mfimage/runtime/loading/loader.py",
    } <= ours
    assert not [name for name in ours if name.startswith(("mfimage/image", "mfimage/capture"))]
    page = "mfimage/runtime/serving/page/"
    ours = {name for name in ours if not name.startswith(page)}
    assert not [name for name in ours if not name.endswith((".py", "py.typed"))]


def imported(tree: ast.Module) -> set[str]:
    """List the modules of ours that importing a module imports."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mfimage"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("mfimage")}
    return found


def test_what_goes_along_imports_only_what_goes_along(sample):
    prefix = "layers/runtime/opt/mfimage/"
    ours = {
        name.removeprefix(prefix): data
        for name, data in contents(sample).items()
        if name.startswith(prefix) and name.endswith(".py")
    }
    for name, data in ours.items():
        for module in imported(ast.parse(data)):
            path = module.replace(".", "/")
            here = {f"{path}.py", f"{path}/__init__.py", f"{path.rpartition('/')[0]}.py"}
            here.add(f"{path.rpartition('/')[0]}/__init__.py")
            assert here & set(ours), f"{name} imports {module}"


def test_every_folder_of_the_dockerfile_is_there(sample):
    sample.artifacts = {f"a{n}": str(n).encode() for n in range(80)}
    folders = {path.rpartition("/")[0] for path in contents(sample)}
    copied = [
        line.split()[1].rstrip("/")
        for line in render(sample.plan()).splitlines()
        if line.startswith("COPY layers/")
    ]
    assert len(copied) == 66
    assert all(any(f"{each}/".startswith(f"{name}/") for each in folders) for name in copied)


def test_equal_plans_give_equal_bytes(sample, tmp_path):
    other = make_sample(tmp_path / "elsewhere")
    other.created = "2031-01-01T00:00:00Z"
    assert contents(sample) == contents(other)


def modes(sample):
    files = context_files(sample.plan(), sample.blobs.path)
    return {file.path.rpartition("/")[2]: file.mode for file in files}


def test_modes_are_normal(sample, monkeypatch):
    data = archive(sample.code, mode=0o4666, mtime=12345, uid=1000, uname="me")
    monkeypatch.setattr("tests.image.sample.archive", lambda files: data)
    assert set(modes(sample).values()) == {0o644}


def test_a_program_among_the_code_stays_one(sample, monkeypatch):
    data = archive({"run.sh": b"#!/bin/sh\n"}, mode=0o700)
    monkeypatch.setattr("tests.image.sample.archive", lambda files: data)
    assert modes(sample)["run.sh"] == 0o755


def test_names_may_be_long_and_of_any_script(sample):
    long = "sub/" + "n" * 150 + ".py"
    sample.code |= {"größe/日本語 file.py": b"", long: b"x"}
    found = contents(sample)
    assert found["layers/code/opt/function/code/größe/日本語 file.py"] == b""
    assert found[f"layers/code/opt/function/code/{long}"] == b"x"


def test_memory_does_not_grow_with_the_artifact(sample, tmp_path):
    size = 64 << 20
    sample.artifacts = {"model": b"\0" * size}
    plan = sample.plan()
    sample.artifacts = {}
    tracemalloc.start()
    try:
        write_context(plan, tmp_path / "out", sample.blobs.path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) > size
    assert peak < 8 << 20


@pytest.mark.parametrize("damage", [b"other", b"", b"m" * 3001])
def test_a_damaged_artifact(sample, tmp_path, damage):
    plan = sample.plan()
    path = sample.blobs.path(plan.artifacts[0].blobs[0])
    path.write_bytes(damage)
    out = tmp_path / "out"
    with pytest.raises(PackageError, match=str(path)):
        write_context(plan, out, sample.blobs.path)
    assert list(out.iterdir()) == []


def test_a_damaged_archive(sample):
    plan = sample.plan()
    (code,) = plan.subject.code.values()
    sample.blobs.path(code).write_bytes(b"other")
    with pytest.raises(PackageError):
        context_files(plan, sample.blobs.path)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py"])
def test_an_archive_that_would_escape(sample, name):
    sample.code = {name: b""}
    with pytest.raises(PackageError, match="would land outside"):
        contents(sample)


def test_layers_by_themselves(sample):
    plan = sample.plan()
    layers = layer_files(plan, sample.blobs.path)
    assert list(layers)[-2:] == ["runtime", "code"]
    assert len(layers) == 4
    assert {file.path for file in layers["code"]} == {
        "opt/function/function.json",
        "opt/function/pylock.toml",
        "opt/function/sbom.cdx.json",
        "opt/function/code/predict.py",
    }


def test_a_blob_that_is_gone(sample):
    plan = sample.plan()

    def gone(ref: BlobRef) -> Path:
        raise PackageError(f"{ref.digest} is missing")

    with pytest.raises(PackageError, match="is missing"):
        context_files(plan, gone)
