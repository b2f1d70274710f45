from __future__ import annotations

import os
from pathlib import Path

import pytest

from mfimage.errors import BuildError, OptionError
from mfimage.files import EPOCH
from mfimage.image.docker.render import context_files, write_context
from tests.image.sample import contents, make_sample


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path / "blobs")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_holds_the_same(sample, tmp_path):
    plan = sample.plan()
    out = tmp_path / "new" / "out"
    write_context(plan, out, sample.blobs.path)
    assert tree(out) == contents(sample, plan)
    modes = {file.path: file.mode for file in context_files(plan, sample.blobs.path)}
    for path in (each for name in ("build", "layers") for each in (out / name).rglob("*")):
        state, name = path.stat(), path.relative_to(out).as_posix()
        assert int(state.st_mtime) == EPOCH, name
        assert state.st_mode & 0o7777 == modes.get(name, 0o755), name


def test_a_change_of_equal_size_shows_in_a_files_time(sample, tmp_path):
    """BuildKit compares names, modes, sizes and times with those of the last build."""
    times = []
    for value in (b"x = 1\n", b"x = 2\n", b"x = 1\n"):
        sample.code = {"predict.py": value}
        write_context(sample.plan(), tmp_path / "out", sample.blobs.path)
        code = tmp_path / "out/layers/code/opt/function/code/predict.py"
        times.append(code.stat().st_mtime_ns)
    assert times[0] == times[2] != times[1]
    assert {time // 10**9 for time in times} == {EPOCH}


def test_a_folder_does_not_depend_on_the_umask(sample, tmp_path):
    before = os.umask(0o077)
    try:
        write_context(sample.plan(), tmp_path / "out", sample.blobs.path)
    finally:
        os.umask(before)
    assert (tmp_path / "out/layers/code").stat().st_mode & 0o777 == 0o755


def test_a_folder_is_independent_of_the_package(sample, tmp_path):
    plan = sample.plan()
    blob = plan.artifacts[0].blobs[0]
    write_context(plan, tmp_path / "out", sample.blobs.path)
    assert sample.blobs.path(blob).stat().st_nlink == 1


def test_rendering_again_replaces(sample, tmp_path):
    out = tmp_path / "out"
    write_context(sample.plan(), out, sample.blobs.path)
    sample.artifacts["model"] = b"new"
    (out / "notes.txt").write_text("mine")
    (out / ".dockerignore").write_text("notes.txt\n")
    write_context(sample.plan(), out, sample.blobs.path)
    expected = contents(sample) | {"notes.txt": b"mine", ".dockerignore": b"notes.txt\n"}
    assert tree(out) == expected


def test_an_empty_folder_will_do(sample, tmp_path):
    (tmp_path / "out").mkdir()
    write_context(sample.plan(), tmp_path / "out", sample.blobs.path)


@pytest.mark.parametrize("name", ["thesis.txt", "Dockerfile", ".git"])
def test_a_folder_with_something_else_is_left_alone(sample, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("FROM scratch")
    with pytest.raises(OptionError, match=name) as caught:
        write_context(sample.plan(), tmp_path / "out", sample.blobs.path)
    assert "empty folder" in caught.value.hint
    assert tree(tmp_path / "out") == {name: b"FROM scratch"}


def test_a_file_is_no_folder(sample, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OptionError, match="Not a directory"):
        write_context(sample.plan(), tmp_path / "out", sample.blobs.path)


def test_a_link_in_the_folder_is_not_followed(sample, tmp_path):
    out = tmp_path / "out"
    write_context(sample.plan(), out, sample.blobs.path)
    precious = tmp_path / "precious"
    (out / "layers").rename(precious)
    (out / "layers").symlink_to(precious)
    before = tree(precious)
    write_context(sample.plan(), out, sample.blobs.path)
    assert not (out / "layers").is_symlink()
    assert tree(precious) == before


def test_a_full_disk_leaves_what_was_there(sample, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_context(sample.plan(), out, sample.blobs.path)
    before = tree(out)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr("os.utime", full)
    sample.artifacts["model"] = b"new"
    with pytest.raises(BuildError, match="No space left on device"):
        write_context(sample.plan(), out, sample.blobs.path)
    assert tree(out) == before
