from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import StorageError
from mfimage.package.storage.buckets import LocalStorage, open_storage


class Interrupted(io.BytesIO):
    """Fails in the middle, as a reader of a remote file does."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(b"x" * (3 << 20))
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise self.error
        return super().read(size)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_roots_are_folders_or_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = tmp_path / "a folder"
    monkeypatch.chdir(tmp_path)
    for root in (spaced, str(spaced), spaced.as_uri(), "a folder", "./a folder/"):
        storage = open_storage(root)
        storage.write("x/y", io.BytesIO(b"1"))
        assert storage.url("x/y") == str(spaced / "x" / "y")
        assert storage.read("x/y") == b"1"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="no storage for ftp://"):
        open_storage("ftp://host/folder")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a/b", io.BytesIO(b"old"))
    raised = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(raised):
        storage.write("a/b", Interrupted(error))
    with pytest.raises(raised):
        storage.write("a/new", Interrupted(error))
    assert files(tmp_path) == ["a/b"]
    assert storage.read("a/b") == b"old"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        storage = LocalStorage(tmp_path / "disk")
        storage.write("small", io.BytesIO(b"x"))
        with pytest.raises(StorageError, match="No space left on device") as caught:
            storage.write("a/large", io.BytesIO(b"x" * (1 << 20)))
        assert "free some space" in str(caught.value.hint)
        assert files(tmp_path / "disk") == ["small"]
        storage.write("a/other", io.BytesIO(b"x" * 1000))


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_no_space_at_any_moment(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/a/b: No space left"):
        LocalStorage(tmp_path).write("a/b", io.BytesIO(b"x"))
    monkeypatch.undo()
    assert files(tmp_path) == []


def test_a_root_that_cannot_be_written_says_where_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*: Not a directory") as caught:
        LocalStorage(tmp_path / "file" / "root").write("a", io.BytesIO(b""))
    assert "MFIMAGE_FUNCTIONS_ROOT" in str(caught.value.hint)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for missing in ("nothing", "no/thing", "file/below"):
        with pytest.raises(FileNotFoundError):
            storage.read(missing)
    for read in (storage.read, storage.open):
        with pytest.raises(StorageError, match=r"cannot read .*folder: Is a directory"):
            read("folder")


def test_a_reader_sees_one_write_or_the_other(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    contents = [bytes([i]) * 200_000 for i in range(8)]
    storage.write("x", io.BytesIO(contents[0]))

    def write(content: bytes) -> bytes:
        for _ in range(5):
            storage.write("x", io.BytesIO(content))
        return storage.read("x")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, contents))
    assert set(found) <= set(contents)
    assert files(tmp_path) == ["x"]


def test_the_umask_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        LocalStorage(tmp_path).write("x", io.BytesIO(b""))
    finally:
        os.umask(before)
    assert oct((tmp_path / "x").stat().st_mode) == "0o100640"
