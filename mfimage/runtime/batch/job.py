"""A batch job: a function over files of records, in parts, on many processes.

::

    OUTPUT/part-00000.jsonl ...      results, in the order of the records
    OUTPUT/errors.jsonl              records that gave none, if any: file, line, reason, record
    OUTPUT/_SUCCESS                  written last; the summary
    OUTPUT/_mfimage/                 what is done, so that a job started again does the rest
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from mfimage.errors import MfimageError, OptionError
from mfimage.package.spec import FunctionSpec
from mfimage.package.storage.objects import ObjectInfo
from mfimage.runtime.batch.parts import PRIVATE, Part, PartDone, PartOptions, plan_parts
from mfimage.runtime.batch.store import find_inputs, locate
from mfimage.runtime.records.formats import RecordFormat, choose_format, output_schema

# A part is no more, and no less, than that; else there are so many of them.
_MOST, _LEAST, _PARTS = 32 << 20, 256 << 10, 64
_SUCCESS = "_SUCCESS"
_TOLD_EVERY = 5.0


class JobError(MfimageError):
    """A batch job cannot go on; what it has done stays done."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What a job was asked for.

    Attributes
    ----------
    input : str
        A file, a folder or a pattern; local or in a bucket.
    output : str
        A folder, of this job alone.
    format, output_format : str or None
        Serializers' names; by the files' suffix if None, and the input's for the output.
    batch_size : int
        The most records that a batch function gets at once.
    part_bytes : int or None
        How much of a file of lines makes a part; by the size of the whole input if None.
    """

    input: str
    output: str
    format: str | None = None
    output_format: str | None = None
    batch_size: int = 256
    part_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name}: expected at least 1, got {value}")


class Runner(Protocol):
    """Runs parts somewhere."""

    def run(self, parts: list[Part]) -> Iterator[tuple[Part, PartDone]]:
        """Run parts, and yield each as it is done, in any order."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a job did.

    Attributes
    ----------
    records, failed : int
        Of the whole job, earlier starts too.
    parts, skipped : int
        All parts, and those that were done before.
    seconds : float
        Of this start.
    output : str
        The folder.
    errors : str or None
        The file that lists what failed.
    """

    records: int
    failed: int
    parts: int
    skipped: int
    seconds: float
    output: str
    errors: str | None


class Job:
    """A job whose input was looked at, and whose output folder is its own.

    Parameters
    ----------
    spec : FunctionSpec
        The function's.
    options : BatchOptions
        What was asked.

    Raises
    ------
    OptionError
        When there is no input, or its files have several formats.
    JobError
        When the folder holds the output of another job.
    """

    def __init__(self, spec: FunctionSpec, options: BatchOptions) -> None:
        self._store, self._folder = locate(options.output.rstrip("/"))
        if not self._folder:
            raise OptionError(f"output: {self._store.root} is no folder", hint="name one below it")
        form = _named(options.format, "format") if options.format else None
        found = find_inputs(options.input, form.files.suffixes if form else _suffixes())
        own = f"{self._store.url(self._folder)}/"
        # A folder of results may lie in the folder that the records come from.
        files = [file for file in found if not file.url.startswith(own)]
        if not files:
            raise OptionError(f"input: {options.input} is the folder of results", hint="name other")
        form = form or _format_of(files)
        out = _named(options.output_format or form.name, "output_format")
        self.part_options = PartOptions(
            output=options.output,
            format=form.name,
            output_format=out.name,
            suffix=out.files.suffixes[0],
            batch_size=options.batch_size,
        )
        part_bytes = options.part_bytes or _part_bytes(files)
        self.parts = plan_parts(files, by_lines=form.is_lines, part_bytes=part_bytes)
        if not out.is_lines:
            output_schema(spec, out)  # what cannot be written is known before anything runs
        self._claim(_identity(spec, self.part_options, files, part_bytes))
        self._before = self._done()

    @property
    def is_left(self) -> bool:
        """Whether anything was not done before."""
        return len(self._before) < len(self.parts)

    def run(self, runner: Runner) -> Summary:
        """Run what is not done yet, then commit the whole."""
        started = time.monotonic()
        done = dict(self._before)
        progress = _Progress(self.parts, done)
        for part, result in runner.run([p for p in self.parts if p.index not in done]):
            done[part.index] = result
            progress.tell(result)
        return self._commit(done, skipped=progress.skipped, seconds=time.monotonic() - started)

    def _claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this job's, unless it is another's."""
        mark = self._key(PRIVATE, "job.json")
        try:
            known = orjson.loads(self._store.read(mark))
        except FileNotFoundError:
            below = next(self._store.list(self._folder), None)
            if below is not None:
                raise JobError(
                    f"output: {self._store.url(self._folder)} is not empty: {below.url}",
                    hint="name a new folder",
                ) from None
            self._store.write(mark, orjson.dumps(identity))
            return
        changed = [name for name in identity if known.get(name) != identity[name]]
        if changed:
            raise JobError(
                f"output: {self._store.url(self._folder)} is of another job: "
                f"{', '.join(changed)} differ",
                hint="name a new folder, or remove that one",
            )

    def _done(self) -> dict[int, PartDone]:
        marks = self._store.list(self._key(PRIVATE, "done"))
        names = [mark.url.rpartition("/")[2] for mark in marks]
        contents = self._store.read_many(self._key(PRIVATE, "done", name) for name in names)
        return {
            int(name.removesuffix(".json")): PartDone(**orjson.loads(content))
            for name, content in zip(names, contents, strict=True)
        }

    def _commit(self, done: Mapping[int, PartDone], *, skipped: int, seconds: float) -> Summary:
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
            skipped=skipped,
            seconds=round(seconds, 3),
            output=self._store.url(self._folder),
            errors=self._store.url(errors) if failed else None,
        )
        self._store.write(self._key(_SUCCESS), orjson.dumps(asdict(summary)) + b"\n")
        return summary

    def _errors(self, done: Mapping[int, PartDone]) -> Iterator[bytes]:
        """Yield all failures, with line numbers that count from the start of each file."""
        failed: list[tuple[Part, int]] = []
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
    # Lines of JSON have a name of their own among formats of files.
    return choose_format("-", {"jsonl": "json"}.get(name, name), option=option)


def _part_bytes(files: Iterable[ObjectInfo]) -> int:
    # Of the input alone: a job that is started again, on more processes say, has the same parts.
    return max(_LEAST, min(_MOST, sum(file.size for file in files) // _PARTS))


def _suffixes() -> tuple[str, ...]:
    from mfimage.function.serializers import FileFormat, serializers

    found = [each.suffixes for each in serializers().values() if isinstance(each, FileFormat)]
    return tuple({suffix for suffixes in [*found, (".parquet",)] for suffix in suffixes})


def _format_of(files: Iterable[ObjectInfo]) -> RecordFormat:
    names = {choose_format(file.url).name: file.url for file in files}
    if len(names) > 1:
        shown = ", ".join(f"{url} ({name})" for name, url in sorted(names.items()))
        raise OptionError(f"input: files of several formats: {shown}", hint="say --format NAME")
    return choose_format("-", *names)


def _identity(
    spec: FunctionSpec, options: PartOptions, files: list[ObjectInfo], part_bytes: int
) -> dict[str, Any]:
    listed = hashlib.sha256(orjson.dumps([asdict(file) for file in files]))
    return {
        "function": spec.digest,
        "format": options.format,
        "output_format": options.output_format,
        "part_bytes": part_bytes,
        "input": listed.hexdigest(),
    }


class _Progress:
    """Tells on stderr, every few seconds, how far the job is."""

    def __init__(self, parts: list[Part], done: Mapping[int, PartDone]) -> None:
        self.skipped = self._parts = len(done)
        self._all = len(parts)
        self._records = 0
        self._started = self._told = time.monotonic()
        if done:
            sys.stderr.write(f"{len(done)} of {len(parts)} parts were done before\n")

    def tell(self, part: PartDone) -> None:
        self._parts += 1
        self._records += part.records
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY or self._parts == self._all:
            self._told = now
            rate = self._records / max(now - self._started, 1e-9)
            sys.stderr.write(
                f"{self._parts} of {self._all} parts, {self._records} records, {rate:.0f}/s\n"
            )
