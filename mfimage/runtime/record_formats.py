"""Which format a file of records has, and by which schema records are written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mfimage.errors import OptionError
from mfimage.function.json import JsonSerializer
from mfimage.function.serializers import FileFormat, find_format, find_serializer, serializers
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.whole_files import Place, is_stream

_LINES = "json"


class HasSpec(Protocol):
    """A function: what ``function_from_json`` returns, or a live one in an image."""

    @property
    def spec(self) -> FunctionSpec:
        """What its package says of itself."""


@dataclass(frozen=True, kw_only=True)
class RecordFormat:
    """A format of files of records.

    Attributes
    ----------
    name : str
        The serializer's.
    files : FileFormat
        What reads and writes them.
    """

    name: str
    files: FileFormat

    @property
    def is_lines(self) -> bool:
        """Whether records are lines of JSON."""
        return self.name == _LINES


def choose_format(place: Place, name: str | None = None, *, option: str = "format") -> RecordFormat:
    """Return the format of a name, or else of a file's suffix; of a stream, JSON lines.

    Raises
    ------
    OptionError, SerializerError
        When there is none, and which there are.
    """
    suffix = Path(place).suffix.lower()
    says_lines = is_stream(place) or suffix in JsonSerializer.suffixes
    if name == _LINES or (name is None and says_lines):
        return RecordFormat(name=_LINES, files=JsonSerializer())  # without a look at all others
    if name is None:
        name = _name_by_suffix(place, suffix, option)
    serializer: object = _parquet(name) or find_serializer(name)
    if not isinstance(serializer, FileFormat):
        raise OptionError(f"{option}: {name} has no files of records; there are {_known()}")
    return RecordFormat(name=name, files=serializer)


def _name_by_suffix(place: Place, suffix: str, option: str) -> str:
    found: Any = find_format(suffix)
    if found is not None:
        return str(found.name)
    if suffix in (".avro", ".parquet"):  # it is known, and not installed; or no serializer
        return suffix[1:]
    what = f"{suffix!r} is no format" if suffix else "no suffix says which format it is"
    raise OptionError(
        f"{os.fspath(place)}: {what}; there are {_known()}",
        hint=f"say which it is: --{option.replace('_', '-')} NAME; one that the function's module "
        "registers is known where it runs in this process: --backend local",
    )


def _parquet(name: str) -> object:
    """Return Parquet, unless somebody's own has the name: of files alone, so no serializer."""
    if name != "parquet" or name in serializers():
        return None
    from mfimage.runtime.parquet_files import ParquetFiles

    return ParquetFiles()


def _known() -> str:
    found = serializers()
    return ", ".join(
        f"{name} ({' '.join(each.suffixes)})"
        for name, each in sorted(found.items())
        if isinstance(each, FileFormat)
    )


def given_schema(spec: FunctionSpec, form: RecordFormat, side: Literal["input", "output"]) -> Any:
    """Return the schema that a function was given for a format, or None."""
    return spec.schemas.get(form.name, {}).get(side)


def output_schema(spec: FunctionSpec, form: RecordFormat) -> Any:
    """Return a format's schema of a function's results: the one it was given, or one derived.

    Raises
    ------
    SchemaError
        When none can be derived from the function's hints.
    """
    given = given_schema(spec, form, "output")
    if given is not None or form.is_lines:
        return given
    serializer: Any = form.files
    return serializer.schema(spec.output_schema, name=spec.name)
