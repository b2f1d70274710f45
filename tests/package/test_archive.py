from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from mfimage.errors import PackageError, StorageError
from mfimage.package.archive import extract, members
from tests.support.packages import archive, archive_of


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


ESCAPES = [
    (member("../evil.py"), "would land outside"),
    (member("a/../../evil.py"), "would land outside"),
    (member("/etc/evil.py"), "would land outside"),
    (member("//evil.py"), "would land outside"),
    (member("a\\..\\evil.py"), "would land outside"),
    (member("."), "would land outside"),
    (member("..", tarfile.DIRTYPE), "would land outside"),
    (member("link", tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    (member("link", tarfile.SYMTYPE, linkname="good.py"), "is a link"),
    (member("hard", tarfile.LNKTYPE, linkname="good.py"), "is a link"),
    (member("device", tarfile.CHRTYPE, devmajor=1, devminor=3), "is a special file"),
    (member("disk", tarfile.BLKTYPE, devmajor=8), "is a special file"),
    (member("pipe", tarfile.FIFOTYPE), "is a special file"),
]


@pytest.mark.parametrize(("bad", "message"), ESCAPES, ids=lambda part: getattr(part, "name", ""))
def test_nothing_lands_outside_its_folder(
    bad: tarfile.TarInfo, message: str, tmp_path: Path
) -> None:
    data = archive_of([(member("good.py"), b""), (bad, b"")])
    folder = tmp_path / "in" / "code"
    with pytest.raises(PackageError, match="the code: member .*" + message):
        extract(data, folder, where="the code")
    assert not folder.exists(), "all of it or nothing"
    assert list(tmp_path.rglob("*")) == [tmp_path / "in"]
    with pytest.raises(PackageError):
        list(members(data, where="the code"))


def test_files_keep_content_and_whether_they_can_be_run(tmp_path: Path) -> None:
    run, plain = member("bin/run", mode=0o4777, size=2), member("./a.py", mode=0o600, size=1)
    data = archive_of([(run, b"#!"), (member("bin", tarfile.DIRTYPE), b""), (plain, b"x")])
    extract(data, tmp_path / "new", where="x")
    assert (tmp_path / "new" / "bin" / "run").read_bytes() == b"#!"
    modes = [oct((tmp_path / "new" / name).stat().st_mode) for name in ("bin/run", "a.py")]
    assert modes == ["0o100755", "0o100644"]
    assert [name for name, _, _ in members(data, where="x")] == ["bin/run", "a.py"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not gzip",
        archive({"a.py": "x" * 5000})[:-20],
        archive({"a.py": "x" * 5000})[:40] + b"\0" * 40,
    ],
)
def test_what_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="the code: not a readable archive"):
        extract(data, tmp_path / "code", where="the code")
    assert not (tmp_path / "code").exists()


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    data = archive_of([(member("a"), b""), (member("a/b.py"), b"")])
    with pytest.raises(PackageError, match=r"'a/b\.py' is both a file and a folder"):
        extract(data, tmp_path / "code", where="x")
    assert not (tmp_path / "code").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot unpack the code: Not a directory"):
        extract(archive({"a.py": ""}), tmp_path / "file" / "code", where="the code")
