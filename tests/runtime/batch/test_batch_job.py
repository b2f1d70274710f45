"""A job and its folder: what is committed, run again and refused."""

from __future__ import annotations

import json

import pytest

from mfimage.errors import OptionError, SchemaError
from mfimage.runtime.batch.job import BatchJob, JobError
from mfimage.runtime.batch.options import BatchOptions
from tests.runtime.batches import InProcess, failures, lines, run_job
from tests.runtime.packages import live


def double(data: int) -> int:
    if data == 13:
        raise ValueError("thirteen")
    return data * 2


@pytest.fixture
def given(tmp_path):
    """Ten records in ten parts."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{n}\n" for n in [5, 7, 9, 11, 13, 15, 17, 19, 21, 23]))
    return path


def options(given, tmp_path, **changed):
    return BatchOptions(input=str(given), output=str(tmp_path / "out"), part_bytes=3, **changed)


def start(given, tmp_path, *, fn=None, stop_at=None, **changed):
    fn = fn or live(double)
    job = BatchJob(fn.spec, options(given, tmp_path, **changed))
    runner = InProcess(fn, job.options, stop_at)
    return job, runner


def test_a_job_that_was_stopped_is_resumed(given, tmp_path):
    job, runner = start(given, tmp_path, stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        job.run(runner.run)
    out = tmp_path / "out"
    assert not (out / "_SUCCESS").exists()
    assert not (out / "errors.jsonl").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    job, again = start(given, tmp_path)
    assert job.is_incomplete
    summary = job.run(again.run)
    assert runner.ran + again.ran == list(range(len(job.parts)))
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}.items()
    assert lines(out) == [10, 14, 18, 22, 30, 34, 38, 42, 46]
    assert [each["line"] for each in failures(out)] == [5], "of all starts"
    assert (summary.records, summary.failed, summary.skipped) == (10, 1, len(before))
    assert json.loads((out / "_SUCCESS").read_text())["records"] == 10
    job, once_more = start(given, tmp_path)
    assert not job.is_incomplete
    assert job.run(once_more.run).skipped == len(job.parts)
    assert once_more.ran == []


def test_a_part_without_its_mark_is_run_again(given, tmp_path):
    """Its process may have been killed before it wrote the mark; its files are replaced."""
    job, runner = start(given, tmp_path)
    job.run(runner.run)
    (tmp_path / "out/_mfimage/done/00002.json").unlink()
    (tmp_path / "out/part-00002.jsonl").write_text("half of")
    job, again = start(given, tmp_path)
    job.run(again.run)
    assert again.ran == [2]
    assert lines(tmp_path / "out") == [10, 14, 18, 22, 30, 34, 38, 42, 46]


def triple(data: int) -> int:
    return data * 3


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("function", lambda given: {"fn": live(triple)}),
        ("part_bytes", lambda given: {"part_bytes": 4}),
        ("output_format", lambda given: {"output_format": "avro"}),
        ("input", lambda given: given.write_text("1\n") and {}),
    ],
)
def test_another_job_needs_another_folder(given, tmp_path, what, change):
    job, runner = start(given, tmp_path, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        job.run(runner.run)
    changed = change(given)
    fn = changed.pop("fn", live(double))
    with pytest.raises(JobError, match=f"belongs to another job: .*{what}") as caught:
        BatchJob(fn.spec, BatchOptions(**{**vars(options(given, tmp_path)), **changed}))
    assert "new folder" in caught.value.hint


def test_another_batch_size_is_the_same_job(given, tmp_path):
    job, runner = start(given, tmp_path, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        job.run(runner.run)
    job, again = start(given, tmp_path, batch_size=2)
    assert job.run(again.run).skipped == 1


def test_a_folder_with_other_files_is_refused(given, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(JobError, match=r"not empty: .*thesis.txt"):
        start(given, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_results_may_be_in_the_folder_of_records(given, tmp_path):
    for _ in range(2):
        summary = run_job(live(double), input=tmp_path, output=tmp_path / "out")
        assert summary.records == 10
    with pytest.raises(OptionError, match="is the folder of results"):
        run_job(live(double), input=tmp_path / "out", output=tmp_path / "out")


def test_an_empty_file_is_not_an_error(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    summary = run_job(live(double), input=tmp_path / "in.jsonl", output=tmp_path / "out")
    assert (summary.records, summary.parts, summary.errors) == (0, 0, None)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_format_without_a_schema_is_refused_before_anything_runs(given, tmp_path):
    def anything(data: int) -> dict:
        return {}

    with pytest.raises(SchemaError):
        start(given, tmp_path, fn=live(anything), output_format="avro")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("in.csv", {}, r"in.csv: unknown suffix '.csv'; known formats: .*json \(.jsonl .ndjson\)"),
        ("in.jsonl", {"format": "cvs"}, "there is no serializer 'cvs'"),
        ("nothing.jsonl", {}, r"there are no files at .*nothing.jsonl"),
        ("*.avro", {}, r"there are no files at .*\*.avro"),
    ],
)
def test_input_that_cannot_be_read_is_refused(tmp_path, name, options, message):
    for file in ("in.csv", "in.jsonl"):
        (tmp_path / file).write_text("1\n")
    with pytest.raises(Exception, match=message):
        run_job(live(double), input=tmp_path / name, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_files_of_several_formats_are_refused(tmp_path):
    for file in ("in.avro", "in.jsonl"):
        (tmp_path / file).write_text("1\n")
    with pytest.raises(OptionError, match=r"several formats: .*in.avro .*in.jsonl") as caught:
        run_job(live(double), input=tmp_path, output=tmp_path / "out")
    assert "--format" in caught.value.hint
    run_job(live(double), input=tmp_path, output=tmp_path / "out", format="jsonl")
    assert lines(tmp_path / "out") == [2]


def test_a_file_without_suffix_needs_a_format(tmp_path):
    (tmp_path / "in").write_text("1\n")
    run_job(live(double), input=tmp_path / "in", output=tmp_path / "out", format="jsonl")
    assert lines(tmp_path / "out") == [2]
