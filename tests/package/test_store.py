from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import MfimageError, PackageError, ReferenceNotFound, StorageError
from mfimage.package.archive import unpack
from mfimage.package.spec import sha256_of
from mfimage.package.storage.local import LocalStorage
from mfimage.package.store import PackageStore, blob_name, digest_of, open_package
from tests.package.test_storage import small_disk
from tests.support.packages import LOCK, archive, make_package, make_spec, put_artifact


def test_blobs_are_written_once_and_healed(tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    ref = store.put_bytes(b"content")
    assert ref == digest_of(io.BytesIO(b"content"))
    path = tmp_path / blob_name(ref)
    before = path.stat().st_ino
    assert store.put_bytes(b"content") == ref
    assert path.stat().st_ino == before, "what is there is not written again"
    path.write_bytes(b"changed")
    with pytest.raises(PackageError, match="does not have the digest that its name says"):
        store.read_blob(ref)
    other = tmp_path / "file"
    other.write_bytes(b"content")
    assert store.put_file(other) == ref
    assert store.read_blob(ref) == b"content"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_blobs_stream_in_bounded_chunks_and_the_last_is_verified(size: int, tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    content = random.Random(size).randbytes(size)
    ref = store.put_bytes(content)
    chunks = list(store.stream_blob(ref))
    assert b"".join(chunks) == content
    assert max(map(len, chunks)) <= 1 << 20
    path = tmp_path / blob_name(ref)
    path.write_bytes(content[:-1] + b"?" if content else b"?")
    seen = []
    with pytest.raises(PackageError, match="digest"):
        seen.extend(store.stream_blob(ref))
    assert len(b"".join(seen)) <= max(size - 1, 0), "a damaged blob is never whole"
    path.unlink()
    for read in (store.read_blob, lambda ref: list(store.stream_blob(ref))):
        with pytest.raises(PackageError, match="missing"):
            read(ref)


def test_a_reference_is_found_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make_package(tmp_path / "root")
    path = Path(reference)
    monkeypatch.chdir(path.parent)
    spellings = [
        reference, path, path.parent, f"{path.parent}/", path.as_uri(), "function.json", ".", "",
        "../../predict/" + path.parent.name, f"../../../functions/predict/{path.parent.name}/",
    ]  # fmt: skip
    for spelling in spellings:
        package = open_package(spelling)
        assert package.reference == reference
        assert package.spec.name == "predict"
        assert package.spec.digest == f"sha256:{path.parent.name}"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/nowhere/functions/predict/abc/function.json", "no function package at /nowhere"),
        ("/functions/predict/abc", "no function package at /functions/predict/abc/function.json"),
        ("/etc/passwd", "'/etc/passwd' is not a reference"),
        ("IrisFlow/1/train/2", "'IrisFlow/1/train/2' is not a reference"),
        ("/x/packages/predict/abc/function.json", "is not a reference"),
    ],
)
def test_a_reference_that_leads_nowhere(reference: str, message: str) -> None:
    with pytest.raises(ReferenceNotFound) as caught:
        open_package(reference)
    assert message in caught.value.message
    assert "mfimage bind" in str(caught.value.hint)


def test_no_storage_for_a_scheme() -> None:
    with pytest.raises(StorageError, match="no storage for ftp://"):
        open_package("ftp://host/functions/predict/abc/function.json")


def test_the_name_says_the_content(tmp_path: Path) -> None:
    """A package under another digest, another name or with other words is not believed."""
    reference = Path(make_package(tmp_path))
    data = reference.read_bytes()
    moved = reference.parent.with_name("0" * 64) / "function.json"
    renamed = reference.parents[2] / "other" / reference.parent.name / "function.json"
    for path in (moved, renamed):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        with pytest.raises(PackageError, match="its content is not what its name says"):
            open_package(path)
    plain = json.loads(data)
    plain["entrypoint"] = "os:system"
    del plain["checksum"]
    plain["checksum"] = sha256_of(plain)
    edited = json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    reference.write_text(edited)
    with pytest.raises(PackageError, match="its content is not what its name says"):
        open_package(reference)


def test_a_package_in_a_newer_form_is_read_and_kept(tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    code, lock = store.put_bytes(archive({"a.py": ""})), store.put_bytes(LOCK)
    spec = make_spec(code, lock, schema_version="1.5", unknown={"later": [1]})
    package = open_package(store.write(spec))
    assert package.spec == spec
    unpack(package.spec, store, _new(tmp_path / "image"))
    assert (tmp_path / "image" / "function.json").read_bytes() == spec.to_json()


def test_writing_the_same_again_keeps_the_first(tmp_path: Path) -> None:
    first = make_package(tmp_path)
    data = Path(first).read_bytes()
    assert make_package(tmp_path) == first
    assert Path(first).read_bytes() == data
    Path(first).write_bytes(data[:-9])
    assert make_package(tmp_path) == first, "a damaged one is written again"
    assert Path(first).read_bytes() == data


def test_every_flipped_byte_of_every_blob_is_noticed(tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    refs = [
        store.put_bytes(archive({"a.py": "x = 1\n"})),
        store.put_bytes(LOCK),
        put_artifact(store, {"weights": list(range(20))}),
    ]
    for ref in refs:
        path = tmp_path / blob_name(ref)
        data = bytearray(path.read_bytes())
        for position in range(len(data)):
            data[position] ^= 1 << position % 8
            path.write_bytes(data)
            with pytest.raises(PackageError):
                store.read_blob(ref)
            with pytest.raises(PackageError):
                list(store.stream_blob(ref))
            data[position] ^= 1 << position % 8


def test_unpacking_verifies_everything(tmp_path: Path) -> None:
    reference = make_package(tmp_path / "root", {"pkg/a.py": "x = 1\n"}, {"m": [1], "n": [2]})
    package = open_package(reference)
    unpack(package.spec, package.store, _new(tmp_path / "image"))
    found = sorted(
        path.relative_to(tmp_path / "image").as_posix()
        for path in (tmp_path / "image").rglob("*")
        if path.is_file()
    )
    blobs = sorted(f"blobs/sha256/{ref.hex}" for ref in package.spec.artifacts.values())
    assert found == [*blobs, "code/pkg/a.py", "function.json"]
    for ref in (package.spec.code, *package.spec.artifacts.values()):
        path = tmp_path / "root" / blob_name(ref)
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b"?")
        with pytest.raises(PackageError, match="digest"):
            unpack(package.spec, package.store, _new(tmp_path / "other"))
        path.write_bytes(kept)


def _new(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def test_a_full_disk_leaves_no_package_that_looks_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        with pytest.raises(StorageError, match="No space left on device"):
            make_package(
                tmp_path / "disk", artifacts={"large": random.Random(1).randbytes(1 << 20)}
            )
        assert not list((tmp_path / "disk").rglob("function.json"))
        assert open_package(make_package(tmp_path / "disk"))


def test_whatever_write_fails_no_package_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the writer at its first write, its second, ...: function.json comes last."""
    write = LocalStorage.write
    for survivors in range(4):
        left = iter(range(survivors))

        def failing(self: Any, path: str, source: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise MfimageError("killed")
            write(self, path, source)

        monkeypatch.setattr(LocalStorage, "write", failing)
        root = tmp_path / str(survivors)
        with pytest.raises(MfimageError, match="killed"):
            make_package(root)
        assert not list(root.rglob("function.json"))
    monkeypatch.undo()
