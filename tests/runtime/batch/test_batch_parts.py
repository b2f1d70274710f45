"""The records of a part, and their results."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TypedDict

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mfimage.errors import OptionError, SerializerError
from mfimage.package.storage.objects import ObjectInfo
from mfimage.runtime.batch.job import BatchJob
from mfimage.runtime.batch.options import ActorOptions, BatchOptions
from mfimage.runtime.batch.parts import PartRunner
from mfimage.runtime.loading.loader import load_folder
from tests.backends.process_support import children
from tests.runtime.batches import failures, lines, run_job
from tests.runtime.packages import live, make_folder


def echo(data):
    return data


PIECES = st.sampled_from(
    [b"\n", b"\r\n", b" ", b"\t", b"1", b"[2, 3]", b'"\xc3\xa9"', b'{"a": 1}', b"x" * 40, b"\xff"]
)


@given(pieces=st.lists(PIECES, max_size=60), part_bytes=st.integers(1, 70))
def test_every_line_is_in_one_part(tmp_path_factory, pieces, part_bytes):
    """For any bytes: the parts together are the file, and line numbers are the file's."""
    folder = tmp_path_factory.mktemp("parts")
    content = b"".join(pieces)
    (folder / "in.jsonl").write_bytes(content)
    kept, bad = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line and not line.isspace():
            try:
                kept.append(json.loads(line.decode()))
            except ValueError:
                bad.append(number)
    summary = run_job(
        live(echo), input=folder / "in.jsonl", output=folder / "out", part_bytes=part_bytes
    )
    assert lines(folder / "out") == kept
    found = failures(folder / "out") if bad else []
    assert [each["line"] for each in found] == bad
    assert (summary.records, summary.failed) == (len(kept) + len(bad), len(bad))
    assert summary.parts == math.ceil(len(content) / part_bytes)
    assert (folder / "out" / "errors.jsonl").exists() == bool(bad)


def test_a_line_may_be_longer_than_many_parts(tmp_path):
    content = [["x" * 300_000], 1, ["y" * 10]]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, content)))
    summary = run_job(
        live(echo), input=tmp_path / "in.jsonl", output=tmp_path / "out", part_bytes=1000
    )
    assert lines(tmp_path / "out") == content
    assert summary.parts == 301


def picky(data: int) -> int:
    if data == 13:
        raise ValueError("thirteen")
    return data


def test_failures_are_listed_with_line_and_reason(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n\n13\n2\n")
    (tmp_path / "b.jsonl").write_text('3\n"x"\n{\n')
    summary = run_job(live(picky), input=tmp_path, output=tmp_path / "out", part_bytes=3)
    assert lines(tmp_path / "out") == [1, 2, 3]
    assert (summary.records, summary.failed) == (6, 3)
    assert summary.errors == f"{tmp_path}/out/errors.jsonl"
    thirteen, text, broken = failures(tmp_path / "out")
    assert thirteen == {
        "file": f"{tmp_path}/a.jsonl",
        "line": 3,
        "error": "ValueError",
        "message": "thirteen",
        "record": "13",
    }
    assert (text["file"], text["line"]) == (f"{tmp_path}/b.jsonl", 2)
    assert text["faults"] == [{"path": "data", "message": "expected int, got 'x'"}]
    assert (broken["line"], broken["error"], broken["record"]) == (3, "InputError", "{")


def test_a_batch_function_gets_batches_of_the_batch_size(tmp_path):
    sizes = []

    def sized(records: list[int]) -> list[int]:
        sizes.append(len(records))
        return records

    (tmp_path / "in.jsonl").write_text("1\n" * 10)
    run_job(
        live(sized, batch=True), input=tmp_path / "in.jsonl", output=tmp_path / "out", batch_size=4
    )
    assert sizes == [4, 4, 2]


class Number(TypedDict):
    n: int


def unless_101(data: Number) -> Number:
    assert data["n"] != 101
    return data


def test_each_avro_file_is_a_part(tmp_path):
    schema = {"type": "record", "name": "R", "fields": [{"name": "n", "type": "int"}]}
    for name, first in (("b", 100), ("a", 0)):
        with (tmp_path / f"{name}.avro").open("wb") as file:
            fastavro.writer(file, schema, [{"n": first + n} for n in range(50)])

    summary = run_job(live(unless_101), input=tmp_path, output=tmp_path / "out", part_bytes=10)
    assert summary.parts == 2
    with (tmp_path / "out" / "part-00000.avro").open("rb") as file:
        assert [row["n"] for row in fastavro.reader(file)] == list(range(50))
    [failure] = failures(tmp_path / "out")
    assert (failure["file"], failure["line"]) == (f"{tmp_path}/b.avro", 2)


# Parquet


class Row(TypedDict):
    n: int
    x: float | None
    s: str


def typed(data: Row) -> Row:
    return data


def rows(path: Path) -> list[dict]:
    return parquet.read_table(path).to_pylist()


def test_parquet_in_and_out(tmp_path):
    table = pa.table(
        {"n": range(25_000), "x": [0.5, math.nan] + [None] * 24_998, "s": "ab" * 12500}
    )
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=1000)
    summary = run_job(live(typed), input=tmp_path, output=tmp_path / "out")
    assert (summary.records, summary.failed, summary.parts) == (25_000, 1, 1)
    found = rows(tmp_path / "out" / "part-00000.parquet")
    assert found == [row for row in table.to_pylist() if row["n"] != 1]
    [failure] = failures(tmp_path / "out")
    assert (failure["line"], failure["faults"][0]["path"]) == (2, "record.x")


def test_parquet_columns_come_from_the_hints_without_any_row(tmp_path):
    (tmp_path / "in.jsonl").write_text('"x"\n')
    run_job(
        live(typed),
        input=tmp_path / "in.jsonl",
        output=tmp_path / "out",
        output_format="parquet",
    )
    schema = parquet.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert {"n": "int64", "s": "string"}.items() <= {
        field.name: str(field.type) for field in schema
    }.items()


def test_parquet_columns_come_from_the_rows_without_hints(tmp_path):
    given = [{"a": 1}, {"b": [1.5]}, 3]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, given)))
    summary = run_job(
        live(echo), input=tmp_path / "in.jsonl", output=tmp_path / "out", output_format="parquet"
    )
    assert rows(tmp_path / "out" / "part-00000.parquet") == [
        {"a": 1, "b": None},
        {"a": None, "b": [1.5]},
    ]
    assert summary.failed == 1
    assert "a row of a table, got 3" in failures(tmp_path / "out")[0]["message"]


def test_parquet_columns_of_mixed_types_are_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(SerializerError, match="do not fit into columns") as caught:
        run_job(
            live(echo),
            input=tmp_path / "in.jsonl",
            output=tmp_path / "out",
            output_format="parquet",
        )
    assert "TypedDict" in caught.value.hint


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "in.parquet").write_bytes(b"")
    monkeypatch.setattr("mfimage.runtime.records.formats.find_spec", lambda name: None)
    with pytest.raises(SerializerError, match="pyarrow is not installed") as caught:
        run_job(live(echo), input=tmp_path, output=tmp_path / "out")
    assert "--with data" in caught.value.hint


# Records that end the process

POISON = """
@json_function(batch=True)
def predict(records: list[int], params: FunctionParameters) -> list[int]:
    if 666 in records:
        os._exit(1)
    if 13 in records:
        raise ValueError("thirteen")
    print("printed")
    return [record + params.offset for record in records]
"""


def test_a_record_that_ends_the_guarded_process_fails_alone(tmp_path, capfd, monkeypatch):
    before = children()
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = make_folder(tmp_path / "fn", POISON, artifacts={"offset": 1})
    given = [1, 666, "x", 2, 13, 1e999, *range(20), 666]
    (tmp_path / "in.jsonl").write_text("\r\n".join(json.dumps(each) for each in given))
    fn = load_folder(folder)
    del sys.modules["served"]  # the next package may have one, too
    options = BatchOptions(
        input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), batch_size=8
    )
    job = BatchJob(fn.spec, options)
    done = PartRunner(fn, job.options).run(job.parts[0], guard=folder)
    kept = [each + 1 for each in given if isinstance(each, int) and each not in (13, 666)]
    assert lines(tmp_path / "out") == kept
    failed = lines(tmp_path / "out", "*/errors/*")
    assert [(each["line"], each["error"]) for each in failed] == [
        (2, "Poison"),
        (3, "InputError"),
        (5, "ValueError"),
        (6, "InputError"),
        (20, "ValueError"),
        (27, "Poison"),
    ]
    assert (done.records, done.failed, done.lines) == (27, 6, 27)
    assert "printed" in capfd.readouterr().err
    assert "offset" not in vars(fn.params), "the model is not in this process"
    assert children() == before


def test_the_size_of_parts_follows_the_input():
    from mfimage.runtime.batch.job import _part_bytes

    for size, expected in ((1000, 256 << 10), (64 << 20, 1 << 20), (1 << 40, 32 << 20)):
        assert _part_bytes([ObjectInfo(url="x", size=size, version="1")]) == expected


def test_numbers_below_their_minimum_are_refused():
    for name in ("batch_size", "part_bytes"):
        with pytest.raises(OptionError, match=f"{name}: expected at least 1, got 0"):
            BatchOptions(input="a", output="b", **{name: 0})
    for value in (-1, math.inf, math.nan):
        with pytest.raises(OptionError, match=f"num_gpus: expected at least 0, got {value}"):
            ActorOptions(num_gpus=value)
