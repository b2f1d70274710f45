"""Files of records: read lazily, written whole or not at all; errors name the record."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfimage.errors import MfimageError, OptionError, RecordError, StorageError
from mfimage.runtime.records.files import read_records, write_records
from mfimage.runtime.records.streams import output_file

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PERSON = {
    "type": "record",
    "name": "Person",
    "fields": [{"name": "name", "type": "string"}, {"name": "age", "type": ["null", "long"]}],
}
PEOPLE = [{"name": f"p{i}", "age": i if i % 3 else None} for i in range(20_000)]


@given(st.lists(VALUES))
def test_json_lines_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    assert write_records(path, values) == len(values)
    found = list(read_records(path))
    assert [json.dumps(value) for value in found] == [json.dumps(value) for value in values]


def test_avro_files_are_exchanged_with_fastavro(tmp_path: Path) -> None:
    path = tmp_path / "people.avro"
    assert write_records(path, iter(PEOPLE), schema=PERSON) == len(PEOPLE)
    with path.open("rb") as file:
        assert list(fastavro.reader(file)) == PEOPLE
    with path.open("wb") as file:
        fastavro.writer(file, PERSON, PEOPLE, codec="deflate")
    assert list(read_records(path)) == PEOPLE


def test_lines_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "x.ndjson"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n\n  [2]  \n"caf\xc3\xa9"\n"' + b"x" * 10_000_000 + b'"'
    )
    first, second, third, fourth = read_records(path)
    assert (first, second, third, len(fourth)) == ({"a": 1}, [2], "café", 10_000_000)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.ndjson"])
def test_an_empty_file_has_no_records(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert list(read_records(tmp_path / name)) == []
    assert write_records(tmp_path / "none.jsonl", []) == 0
    assert (tmp_path / "none.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON: EOF while parsing an object at column 1"),
        (b"nan", "not JSON: "),
        (b'"\xff"', "not JSON: "),
        (b'{"a": NaN}', "not JSON: "),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"1\n\n2\n" + line + b"\n3\n")
    records = read_records(path)
    assert [next(records), next(records)] == [1, 2]
    with pytest.raises(RecordError) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}: line 4: {message}")


def damaged(path: Path) -> str:
    """Read until the damage; return the error."""
    good = 0
    with pytest.raises(RecordError) as caught:
        for good, record in enumerate(read_records(path), 1):
            assert record == PEOPLE[good - 1]
    assert f"{path}: after {good} good records: " in str(caught.value)
    return str(caught.value)


def test_a_truncated_avro_file_reports_its_good_records(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.avro", tmp_path / "cut.avro"
    write_records(whole, PEOPLE, schema=PERSON)
    data = whole.read_bytes()
    reached = set()
    for size in (0, 3, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:size])
        reached.add(damaged(cut).split()[2])
    assert len(reached) >= 3


def test_a_file_that_is_not_avro_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.avro"
    path.write_bytes(b'{"name": "p0", "age": null}\n')
    assert "after 0 good records: not an Avro file, or damaged: " in damaged(path)


def test_reading_and_writing_need_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    row = {"x": "y" * 1000}
    tracemalloc.start()
    assert write_records(path, itertools.repeat(row, 30_000)) == 30_000
    assert sum(1 for _ in read_records(path)) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 30_000_000
    assert peak < 5_000_000


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise RuntimeError("half way")


@pytest.mark.parametrize("count", [0, 1000, 300_000])
def test_a_failed_write_leaves_the_file_unchanged(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(RuntimeError, match="half way"):
        write_records(path, failing(count))
    assert list(tmp_path.iterdir()) == []
    path.write_text("before")
    with pytest.raises(RuntimeError, match="half way"):
        write_records(path, failing(count))
    assert [path.read_text(), *tmp_path.iterdir()] == ["before", path]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    path, link = tmp_path / "x.jsonl", tmp_path / "link.jsonl"
    before = os.umask(0o027)
    try:
        write_records(path, [1])
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o604)
        link.symlink_to(path)
        write_records(link, [2])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o604
    assert link.is_symlink()
    assert path.read_text() == "2\n"


def test_special_files_are_written_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_records(pipe, [1, 2], format="json")
        assert reader.communicate()[0] == b"1\n2\n"
    assert pipe.is_fifo()
    with pytest.raises(StorageError, match="cannot write /dev/full: No space left on device"):
        write_records("/dev/full", range(1_000_000), format="json")


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from mfimage.runtime.records.files import write_records\n"
        "from mfimage.errors import StorageError\n"
        "try: write_records('x.jsonl', range(1_000_000))\n"
        "except StorageError as error: print(error)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, text=True)
    assert output == "cannot write x.jsonl: File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        (
            "x.csv",
            None,
            "x.csv: unknown suffix '.csv'; known formats: avro (.avro), json (.jsonl .ndjson)",
        ),
        ("x", None, "x: no suffix to choose the format by; known formats: avro (.avro), "),
        ("x.jsonl", "csv", "there is no serializer 'csv'; there are avro, json"),
        ("absent.jsonl", None, "input: cannot read absent.jsonl: No such file or directory"),
        (".", "json", "input: cannot read .: Is a directory"),
    ],
)
def test_unreadable_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, format: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MfimageError) as caught:
        list(read_records(path, format=format))
    assert str(caught.value).startswith(message)


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*/no/x\.jsonl: No such file"):
        write_records(tmp_path / "no" / "x.jsonl", [1])


def test_missing_fastavro_names_the_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['fastavro'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'fastavro' else found(name, *a)\n"
        "from mfimage.runtime.records.files import read_records\n"
        "from mfimage.errors import MfimageError\n"
        "try: next(read_records('x.avro'))\n"
        "except MfimageError as error: print(error, '|', error.hint)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, text=True)
    assert output == "avro: fastavro is not installed here | pip install 'mfimage[avro]'\n"


def test_records_of_a_pipe_are_yielded_before_its_end() -> None:
    script = (
        "from mfimage.runtime.records.files import read_records\n"
        "for record in read_records('-'): print(record, flush=True)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for line in (b"1\n", b"2\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line


def test_an_invalid_output_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        write_records(tmp_path / "x.csv", failing(0))
    with pytest.raises(StorageError), output_file(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_avro_is_read_from_a_pipe() -> None:
    written = io.BytesIO()
    fastavro.writer(written, PERSON, PEOPLE[:3])
    script = (
        "from mfimage.runtime.records.files import read_records\n"
        "print(len(list(read_records('-', format='avro'))))"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, input=written.getvalue()) == b"3\n"
