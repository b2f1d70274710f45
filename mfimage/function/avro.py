"""The Avro serializer: single values in Avro's binary encoding, container files of records."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from mfimage.errors import Fault, InputError, OutputError, SchemaError, ValueFault
from mfimage.function.avro_parse import parse_schema
from mfimage.function.avro_read import compile_reader
from mfimage.function.avro_schema import derive_schema
from mfimage.function.avro_texts import Misfit
from mfimage.function.avro_types import Type
from mfimage.function.avro_write import compile_writer
from mfimage.function.json_values import join

# What fastavro gathers before it writes a block.
_BLOCK = 16_000
_SCHEMAS_KEPT = 64


class Codec:
    """Reads and writes values of one Avro schema.

    Raises
    ------
    SchemaError
        When the schema is none.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.type: Type = parse_schema(schema)
        self._read = compile_reader(self.type)
        self._write = compile_writer(self.type)

    @functools.cached_property
    def _write_known(self) -> Callable[[Any, bytearray], None]:
        return compile_writer(self.type, drop=True)

    def encode(self, value: Any, *, root: str, error: type[ValueFault] = OutputError) -> bytes:
        """Return a JSON value's bytes; ``error`` by path where it does not fit."""
        out = bytearray()
        try:
            self._write(value, out)
        except (Misfit, RecursionError) as misfit:
            raise error([_fault(misfit, root)]) from None
        return bytes(out)

    def decode(self, data: bytes, *, root: str) -> Any:
        """Return the JSON value that is all of ``data``; ``InputError`` by path."""
        value, end = self.decode_at(data, 0, root=root)
        if end != len(data):
            message = f"{len(data) - end} bytes more than the value has"
            raise InputError([Fault(path=root, message=message)])
        return value

    def decode_at(self, data: bytes, place: int, *, root: str) -> tuple[Any, int]:
        """Return the JSON value at a place, and the place behind it."""
        try:
            return self._read(data, place)
        except (Misfit, RecursionError) as misfit:
            raise InputError([_fault(misfit, root)]) from None

    def hold(self, value: Any, *, root: str, error: type[ValueFault], drop: bool = False) -> Any:
        """Return what a JSON value is once it was written and read: defaults are there.

        Parameters
        ----------
        value : Any
            The JSON value.
        root : str
            What paths start with.
        error : type
            What is raised when it does not fit.
        drop : bool
            Whether members that the schema does not have are left out, not refused.
        """
        out = bytearray()
        try:
            (self._write_known if drop else self._write)(value, out)
            return self._read(bytes(out), 0)[0]
        except (Misfit, RecursionError) as misfit:
            raise error([_fault(misfit, root)]) from None


def _fault(misfit: Misfit | RecursionError, root: str) -> Fault:
    if isinstance(misfit, RecursionError):
        return Fault(path=root, message="nested too deeply")
    return Fault(path=functools.reduce(join, reversed(misfit.parts), root), message=misfit.message)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Records as fastavro's writer takes them when somebody else has encoded them."""

    bytes_: io.BytesIO
    num_records: int


class AvroSerializer:
    """Avro, by the schema that the JSON Schema gives or the user.

    A value alone is its binary encoding, without schema: both sides know it. Files are containers,
    which have their schema in the header.
    """

    name = "avro"
    media_type = "application/avro"
    suffixes: tuple[str, ...] = (".avro",)

    def __init__(self) -> None:
        # By identity: comparing schemas would cost more than the value.
        self._codecs: OrderedDict[int, Codec] = OrderedDict()

    def schema(self, json_schema: Mapping[str, Any], *, name: str) -> Any:
        """Return the Avro schema of what a JSON Schema describes; ``SchemaError`` by path."""
        return derive_schema(json_schema, name=name)

    def dumps(self, value: Any, schema: Any) -> bytes:
        """Return a value's bytes; ``OutputError`` by path where it does not fit the schema."""
        return self._codec(schema).encode(value, root="result")

    def loads(self, data: bytes, schema: Any) -> Any:
        """Return the JSON value of bytes from anywhere; ``InputError`` when they are none."""
        return self._codec(schema).decode(bytes(data), root="data")

    def _codec(self, schema: Any) -> Codec:
        found = self._codecs.get(id(schema))
        if found is None or found.schema is not schema:
            found = self._codecs[id(schema)] = Codec(schema)
            if len(self._codecs) > _SCHEMAS_KEPT:
                self._codecs.popitem(last=False)
        return found

    def read(self, file: BinaryIO, schema: Any = None) -> Iterator[Any]:
        """Yield the records of a container file.

        With a schema, they are held to it as Avro does for a reader of another schema: members
        that it does not have are left out, those that are absent have its defaults.
        """
        own = None if schema is None else self._codec(schema)
        number = 0
        for codec, data, count in _blocks(file):
            place = 0
            for _ in range(count):
                number += 1
                root = f"record {number}"
                value, place = codec.decode_at(data, place, root=root)
                yield own.hold(value, root=root, error=InputError, drop=True) if own else value
            if place != len(data):
                raise _damaged(f"{len(data) - place} bytes behind record {number}")

    @contextmanager
    def write(self, file: BinaryIO, schema: Any) -> Iterator[Callable[[Any], None]]:
        """Give a callable that appends a record to a container file."""
        if schema is None:
            raise SchemaError("an Avro file needs a schema", hint="give schema= to @avro_function")
        container = _Container(file, self._codec(schema))
        try:
            yield container.append
        finally:
            container.flush()


class _Container:
    def __init__(self, file: BinaryIO, codec: Codec) -> None:
        from fastavro.write import Writer

        # The same records are the same bytes: the marker between blocks is not random.
        marker = hashlib.sha256(json.dumps(codec.schema, sort_keys=True).encode()).digest()[:16]
        self._writer: Any = Writer(
            _Plain(file),  # type: ignore[arg-type]  # it only writes
            codec.schema,
            codec="deflate",
            sync_marker=marker,
        )
        self._codec = codec
        self._records = 0
        self._buffer = bytearray()

    def append(self, record: Any) -> None:
        self._buffer += self._codec.encode(record, root="result")
        self._records += 1
        if len(self._buffer) >= _BLOCK:
            self._write_block()

    def flush(self) -> None:
        if self._records:
            self._write_block()
        self._writer.flush()

    def _write_block(self) -> None:
        block: Any = _Block(bytes_=io.BytesIO(self._buffer), num_records=self._records)
        self._writer.write_block(block)
        self._records, self._buffer = 0, bytearray()


class _Plain:
    """A file that can only be written to: fastavro would append to one that it can seek."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush = file.write, file.flush

    def seekable(self) -> bool:
        return False


class _Stream:
    """A file that is only read: fastavro asks where it stands, which a pipe cannot tell."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def tell(self) -> int:
        return 0


def _blocks(file: BinaryIO) -> Iterator[tuple[Codec, bytes, int]]:
    """Yield what each block holds: how to read it, its bytes, how many records."""
    from fastavro import block_reader

    with _only_faults():
        blocks: Any = block_reader(_Stream(file))  # type: ignore[arg-type]  # it only reads
        codec = Codec(json.loads(blocks.metadata["avro.schema"]))
    while True:
        with _only_faults():
            block = next(blocks, None)
        if block is None:
            return
        yield codec, block.bytes_.getvalue(), block.num_records


@contextmanager
def _only_faults() -> Iterator[None]:
    try:
        yield
    except SchemaError as error:
        raise _damaged(error.message) from None
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _damaged(reason) from error


def _damaged(reason: str) -> InputError:
    return InputError([Fault(path="file", message=f"not an Avro file, or damaged: {reason}")])
