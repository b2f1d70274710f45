"""Copying between folders: what is moved, what is not, and what a broken transfer leaves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.copy import CopyEvent, copy_package
from mfimage.errors import OptionError, PackageError, ReferenceNotFound, StorageError
from mfimage.load import function_from_json
from mfimage.package.spec import ArtifactRef
from mfimage.package.store import blob_name, digest_of, open_package
from tests.package.test_storage import small_disk
from tests.support.packages import PREDICT, make_package
from tests.support.projects import python

pytestmark = pytest.mark.slow

MFIMAGE = str(Path(sys.executable).with_name("mfimage"))


def content(root: Path) -> dict[str, tuple[str, int]]:
    """Return what is under a root, each with its digest and the time it was written."""
    return {
        path.relative_to(root).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in root.rglob("*")
        if path.is_file()
    }


def names(root: Path) -> list[str]:
    return sorted(content(root))


def large(root: Path, count: int = 6, size: int = 3 << 20) -> str:
    """Make a package with several artifacts of some size."""
    noise = random.Random(1)
    values = {f"part{i}": noise.randbytes(size) for i in range(count)}
    return make_package(root, artifacts={"factor": 3, **values})


def test_a_copy_is_the_same_and_runs_where_the_first_is_gone(tmp_path: Path) -> None:
    reference = make_package(tmp_path / "a")
    copied = copy_package(reference, tmp_path / "b")
    assert copied == reference.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    kept = content(tmp_path / "a")
    assert {n: d for n, (d, _) in content(tmp_path / "b").items()} == {
        name: digest for name, (digest, _) in kept.items()
    }
    shutil.rmtree(tmp_path / "a")
    assert function_from_json(copied)({"x": 2}) == {"y": 6}


def test_export_is_a_copy(tmp_path: Path) -> None:
    function = function_from_json(make_package(tmp_path / "a"))
    assert function_from_json(function.export(tmp_path / "b"))({"x": 2}) == {"y": 6}


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    """Not by the same copy, and not by one of a package that shares blobs."""
    reference = make_package(tmp_path / "a")
    copied = copy_package(reference, tmp_path / "b")
    before = content(tmp_path / "b")
    events: list[CopyEvent] = []
    assert copy_package(reference, tmp_path / "b", on_progress=events.append) == copied
    assert copy_package(copied, tmp_path / "b") == copied
    assert content(tmp_path / "b") == before
    assert {event.kind for event in events} == {"found"}
    other = make_package(tmp_path / "a", {"predict.py": PREDICT + "# edited\n"})
    events.clear()
    copy_package(other, tmp_path / "b", on_progress=events.append)
    after = content(tmp_path / "b")
    assert {name: after[name] for name in before} == before
    assert [event.blob for event in events if event.kind == "copied"] == ["code"]


def test_damage_at_the_target_is_mended(tmp_path: Path) -> None:
    reference = make_package(tmp_path / "a")
    copied = copy_package(reference, tmp_path / "b")
    whole = {name: digest for name, (digest, _) in content(tmp_path / "b").items()}
    for name in whole:
        path = tmp_path / "b" / name
        path.write_bytes(path.read_bytes()[:-3])
        assert copy_package(reference, tmp_path / "b") == copied
        assert {n: digest for n, (digest, _) in content(tmp_path / "b").items()} == whole


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_damage_at_the_source_is_not_copied(tmp_path: Path, harm: str) -> None:
    reference = make_package(tmp_path / "a")
    model = open_package(reference).spec.artifacts["factor"]
    blob = tmp_path / "a" / "blobs" / "sha256" / model.hex
    blob.write_bytes(b"!" * model.size) if harm == "changed" else blob.unlink()
    with pytest.raises(PackageError) as caught:
        copy_package(reference, tmp_path / "b")
    assert "artifact 'factor'" in caught.value.message
    assert str(blob) in caught.value.message
    assert "bind the function again" in str(caught.value.hint)
    assert f"blobs/sha256/{model.hex}" not in names(tmp_path / "b")
    assert not list(tmp_path.glob("b/functions/**/function.json"))


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """And what has arrived is not sent again when there is space."""
    reference = large(tmp_path / "a", count=3, size=300 << 10)
    with small_disk(tmp_path / "disk"):
        with pytest.raises(StorageError, match="No space left on device") as caught:
            copy_package(reference, tmp_path / "disk", jobs=1)
        assert caught.value.message.startswith("artifact 'part")
        assert "copy again: what has arrived is not sent again" in str(caught.value.hint)
        assert all(name.startswith("blobs/sha256/") for name in names(tmp_path / "disk"))
        assert not any(".tmp-" in name for name in names(tmp_path / "disk"))


def test_an_interrupted_copy_goes_on_where_it_stopped(tmp_path: Path) -> None:
    reference = large(tmp_path / "a")
    arrived: list[str] = []

    def interrupt(event: CopyEvent) -> None:
        if event.kind == "copied":
            arrived.append(event.blob)
        if len(arrived) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_package(reference, tmp_path / "b", on_progress=interrupt, jobs=2)
    assert [t.name for t in threading.enumerate() if t.name.startswith("mfimage")] == []
    there = content(tmp_path / "b")
    assert there and all(name.startswith("blobs/sha256/") for name in there)
    events: list[CopyEvent] = []
    copied = copy_package(reference, tmp_path / "b", on_progress=events.append)
    assert {event.blob for event in events if event.kind == "found"} >= set(arrived)
    after = content(tmp_path / "b")
    assert {name: after[name] for name in there} == there
    assert function_from_json(copied)({"x": 2}) == {"y": 6}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_copy_leaves_nothing_that_looks_whole(tmp_path: Path, end: signal.Signals) -> None:
    reference = large(tmp_path / "a", count=8, size=16 << 20)
    command = [MFIMAGE, "copy", reference, str(tmp_path / "b"), "--jobs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "b").glob("blobs/sha256/[0-9a-f]*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(end)
    start = time.monotonic()
    said, story = process.communicate(timeout=30)
    assert time.monotonic() - start < 3
    assert said == ""
    assert process.returncode == (130 if end is signal.SIGINT else -9)
    if end is signal.SIGINT:
        assert story.splitlines()[-1] == "interrupted"
        assert not [name for name in names(tmp_path / "b") if ".tmp-" in name]
    assert not list((tmp_path / "b").rglob("function.json"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert " there already" in done.stderr.splitlines()[-1]
    assert function_from_json(done.stdout.strip())({"x": 2}) == {"y": 6}


def test_eight_copies_at_once_give_one_package(tmp_path: Path) -> None:
    reference = large(tmp_path / "a", count=3)
    command = [MFIMAGE, "copy", reference, str(tmp_path / "b")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 8
    (copied,) = said
    assert function_from_json(copied.strip())({"x": 2}) == {"y": 6}
    assert names(tmp_path / "a") == names(tmp_path / "b")


# The most memory that the process ever had, in MB.
PEAK = "next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) // 1024"


def test_memory_does_not_grow_with_an_artifact(tmp_path: Path) -> None:
    """Half a gigabyte, a hole in a file at the source."""
    reference = huge(tmp_path / "a", 512 << 20)
    code = (
        "import sys; from mfimage.copy import copy_package\n"
        f"copy_package(*sys.argv[1:]); print({PEAK})"
    )
    peak = python(["-c", code, reference, str(tmp_path / "b")], folder=tmp_path).stdout
    assert int(peak) < 100
    shutil.rmtree(tmp_path / "b")


def huge(root: Path, size: int) -> str:
    """Make a package with an artifact of so many zeros."""
    root.mkdir(parents=True)
    with (root / "zeros").open("w+b") as file:
        os.truncate(file.fileno(), size)
        blob = digest_of(file)
    path = root / blob_name(blob)
    path.parent.mkdir(parents=True)
    (root / "zeros").rename(path)
    zeros = ArtifactRef(digest=blob.digest, size=size, encoding="pickle-v4", type="bytes")
    return make_package(root, artifacts={"factor": 3, "zeros": zeros})


def test_references_stay_valid_when_a_root_moves(tmp_path: Path) -> None:
    reference = make_package(tmp_path / "a")
    assert str(tmp_path) not in Path(reference).read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").rename(tmp_path / "elsewhere" / "b")
    moved = reference.replace("/a/", "/elsewhere/b/")
    assert function_from_json(moved)({"x": 2}) == {"y": 6}
    assert open_package(moved).reference == moved


def test_the_command_prints_the_reference_and_tells_the_story(tmp_path: Path) -> None:
    reference = make_package(tmp_path / "a")
    command = [MFIMAGE, "copy", reference, str(tmp_path / "b")]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    spec = open_package(first.stdout.strip()).spec
    assert first.stdout == reference.replace("/a/", "/b/") + "\n"
    sizes = {ref.digest: ref.size for ref in spec.blobs.values()}
    *blobs, summary = first.stderr.splitlines()
    assert {line.partition("  ")[0] for line in blobs} == {"code", "lock", "artifact 'factor'"}
    total = f"{sum(sizes.values()) / 1e3:.1f} kB"
    assert summary == f"copied 3 blobs ({total}); 0 blobs (0.0 kB) there already"
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout == first.stdout
    assert second.stderr == f"copied 0 blobs (0.0 kB); 3 blobs ({total}) there already\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{nowhere}", "b"], 1, "error: no function package at {nowhere}\n"),
        (["{reference}", "ftp://host/x"], 1, "error: no storage for ftp://"),
        (["{reference}", "b", "--jobs", "0"], 2, "Usage:"),
        (["{reference}"], 2, "Usage:"),
        (["{reference}", "/proc/mfimage"], 1, "error: "),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, arguments, code, said) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {
        "reference": make_package(tmp_path / "a"),
        "nowhere": "/nowhere/functions/f/0/function.json",
    }
    result = CliRunner().invoke(main, ["copy", *(text.format(**given) for text in arguments)])
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(said.format(**given))


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="jobs: expected at least 1, got 0"):
        copy_package(make_package(tmp_path / "a"), tmp_path / "b", jobs=0)
    with pytest.raises(ReferenceNotFound):
        copy_package(tmp_path / "functions" / "x" / "0", tmp_path / "b")


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    reference = large(tmp_path / "a", count=2)
    theirs, ours = pty.openpty()
    with os.fdopen(theirs, "rb", 0) as screen:
        command = [MFIMAGE, "copy", reference, str(tmp_path / "b")]
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=ours, env=env)
        os.close(ours)
        seen = _read_all(screen).decode()
        said = process.communicate(timeout=30)[0].decode()
    assert open_package(said.strip())
    assert "copying" in seen and "━" in seen and "MB" in seen
    assert re.search(r"artifact 'part1' +3\.1 MB\r\n", seen)
    assert seen.rstrip().endswith("there already")


def _read_all(screen: BinaryIO) -> bytes:
    data = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while chunk := screen.read(1 << 16):
            data += chunk
    return data
