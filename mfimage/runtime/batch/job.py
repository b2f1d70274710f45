"""A batch job: a function over files of records, in parts, on many processes.

::

    OUTPUT/part-00000.jsonl ...      results, in the order of the records
    OUTPUT/errors.jsonl              records without a result, if any: file, line, reason, record
    OUTPUT/_SUCCESS                  written last; the summary
    OUTPUT/_mfimage/                 which parts are done, for a job that is started again
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mfimage.errors import MfimageError, OptionError
from mfimage.function.serializers import FileFormat, serializers
from mfimage.package.spec import CallableSpec
from mfimage.package.storage.objects import ObjectInfo
from mfimage.runtime.batch.options import BatchOptions
from mfimage.runtime.batch.parts import PRIVATE, BatchPart, PartResult, plan_parts
from mfimage.runtime.batch.store import find_inputs, locate
from mfimage.runtime.records.formats import RecordFormat, choose_format, is_lines, output_schema

# By default the input makes this many parts, each within these sizes.
_PARTS, _MIN_PART, _MAX_PART = 64, 256 << 10, 32 << 20
_SUCCESS = "_SUCCESS"
_REPORT_SECONDS = 5.0

# Runs parts somewhere and yields each when it is done, in any order.
RunParts = Callable[[list[BatchPart]], Iterator[tuple[BatchPart, PartResult]]]


class JobError(MfimageError):
    """A batch job cannot go on; the parts that are done stay done."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a job, earlier starts included; ``seconds`` and ``skipped`` are of this one."""

    records: int
    failed: int
    parts: int
    skipped: int
    seconds: float
    output: str
    errors: str | None


class BatchJob:
    """A job that has found its input and claimed its output folder.

    Its ``options`` are those given, with both formats filled in. ``OptionError`` when no input is
    found, or its files have several formats; ``JobError`` when the folder belongs to another job.
    """

    def __init__(self, spec: CallableSpec, options: BatchOptions) -> None:
        self._store, self._folder = locate(options.output.rstrip("/"))
        if not self._folder:
            raise OptionError(
                f"output: expected a folder, got {self._store.root}", hint="name one below it"
            )
        form = _named(options.format, "format") if options.format else None
        formats = [each for each in serializers().values() if isinstance(each, FileFormat)]
        known = (*(suffix for each in formats for suffix in each.suffixes), ".parquet")
        found = find_inputs(options.input, form.suffixes if form else known)
        own = f"{self._store.url(self._folder)}/"
        # The folder of results may be inside the folder of records.
        files = [file for file in found if not file.url.startswith(own)]
        if not files:
            raise OptionError(
                f"input: {options.input} is the folder of results", hint="name the records' folder"
            )
        form = form or _format_of(files)
        out = _named(options.output_format or form.name, "output_format")
        self.options = replace(options, format=form.name, output_format=out.name)
        part_bytes = options.part_bytes or _part_bytes(files)
        self.parts = plan_parts(files, by_lines=is_lines(form), part_bytes=part_bytes)
        output_schema(spec, out)  # fails now if it has none, before anything runs
        self._claim(_identity(spec, self.options, files, part_bytes))
        self._before = self._done()

    @property
    def is_incomplete(self) -> bool:
        """Whether any part is left to run."""
        return len(self._before) < len(self.parts)

    def run(self, run_parts: RunParts) -> Summary:
        """Run the parts that are left, then commit the whole job."""
        done, total, records = dict(self._before), len(self.parts), 0
        started = reported = time.monotonic()
        if done:
            sys.stderr.write(f"{len(done)} of {total} parts were done before\n")
        for part, result in run_parts([part for part in self.parts if part.index not in done]):
            done[part.index] = result
            records += result.records
            now = time.monotonic()
            if now - reported >= _REPORT_SECONDS or len(done) == total:
                reported, rate = now, records / max(now - started, 1e-9)
                sys.stderr.write(f"{len(done)} of {total} parts, {records} records, {rate:.0f}/s\n")
        return self._commit(done, seconds=time.monotonic() - started)

    def _claim(self, identity: Mapping[str, Any]) -> None:
        """Mark the folder as this job's, unless it is another's."""
        mark = self._key(PRIVATE, "job.json")
        output = f"output: {self._store.url(self._folder)}"
        try:
            known = orjson.loads(self._store.read(mark))
        except FileNotFoundError:
            below = next(self._store.list(self._folder), None)
            if below is not None:
                raise JobError(
                    f"{output} is not empty: {below.url}", hint="name a new folder"
                ) from None
            self._store.write(mark, orjson.dumps(identity))
            return
        changed = [name for name in identity if known.get(name) != identity[name]]
        if changed:
            raise JobError(
                f"{output} belongs to another job: {', '.join(changed)} differ",
                hint="name a new folder, or remove that one",
            )

    def _done(self) -> dict[int, PartResult]:
        marks = self._store.list(self._key(PRIVATE, "done"))
        names = [mark.url.rpartition("/")[2] for mark in marks]
        contents = self._store.read_many(self._key(PRIVATE, "done", name) for name in names)
        return {
            int(name.removesuffix(".json")): PartResult(**orjson.loads(content))
            for name, content in zip(names, contents, strict=True)
        }

    def _commit(self, done: Mapping[int, PartResult], *, seconds: float) -> Summary:
        failed = sum(part.failed for part in done.values())
        errors = self._key("errors.jsonl")
        if failed:
            with tempfile.TemporaryDirectory(prefix="mfimage-") as private:
                path = Path(private, "errors")
                with path.open("wb") as file:
                    file.writelines(self._errors(done))
                self._store.write(errors, path)
        summary = Summary(
            records=sum(part.records for part in done.values()),
            failed=failed,
            parts=len(self.parts),
            skipped=len(self._before),
            seconds=round(seconds, 3),
            output=self._store.url(self._folder),
            errors=self._store.url(errors) if failed else None,
        )
        self._store.write(self._key(_SUCCESS), orjson.dumps(asdict(summary)) + b"\n")
        return summary

    def _errors(self, done: Mapping[int, PartResult]) -> Iterator[bytes]:
        """Yield all failures, with line numbers that count from the start of each file."""
        failed: list[tuple[BatchPart, int]] = []
        url, before = "", 0
        for part in self.parts:
            if part.url != url:
                url, before = part.url, 0
            if done[part.index].failed:
                failed.append((part, before))
            before += done[part.index].lines
        keys = (self._key(PRIVATE, "errors", f"{part.index:05}.jsonl") for part, _ in failed)
        for (part, first), content in zip(failed, self._store.read_many(keys), strict=True):
            for line in content.splitlines():
                failure = orjson.loads(line)
                failure["line"] += first
                yield orjson.dumps({"file": part.url, **failure}) + b"\n"

    def _key(self, *names: str) -> str:
        return "/".join((self._folder, *names)).lstrip("/")


def _named(name: str, option: str) -> RecordFormat:
    # As formats of files, lines of JSON are called by their suffix.
    return choose_format("-", {"jsonl": "json"}.get(name, name), option=option)


def _part_bytes(files: Iterable[ObjectInfo]) -> int:
    # From the input alone: a job that is started again, even with more processes, has equal parts.
    return max(_MIN_PART, min(_MAX_PART, sum(file.size for file in files) // _PARTS))


def _format_of(files: Iterable[ObjectInfo]) -> RecordFormat:
    names = {choose_format(file.url).name: file.url for file in files}
    if len(names) > 1:
        shown = ", ".join(f"{url} ({name})" for name, url in sorted(names.items()))
        raise OptionError(f"input: files of several formats: {shown}", hint="name one: --format")
    return choose_format("-", *names)


def _identity(
    spec: CallableSpec, options: BatchOptions, files: list[ObjectInfo], part_bytes: int
) -> dict[str, Any]:
    listed = hashlib.sha256(orjson.dumps([asdict(file) for file in files]))
    return {
        "function": spec.digest,
        "format": options.format,
        "output_format": options.output_format,
        "part_bytes": part_bytes,
        "input": listed.hexdigest(),
    }
