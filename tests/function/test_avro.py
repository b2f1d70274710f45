"""Avro bytes and files: what goes in comes out, and what is damaged is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mfimage.errors import InputError, OutputError, SchemaError
from mfimage.function.avro import AvroSerializer, Codec
from tests.function.avro_strategies import schemas_and_values
from tests.function.test_json import same

avro = AvroSerializer()
# Schemas are slow to draw on a busy machine: the same few cases every time.
FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

NODE = {"type": "record", "name": "Node",
        "fields": [{"name": "next", "type": ["null", "Node"]}]}  # fmt: skip
FLOWER = {
    "type": "record", "name": "Flower", "namespace": "garden", "fields": [
        {"name": "petals", "type": "long"},
        {"name": "names", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "color", "type": {"type": "enum", "name": "Color", "symbols": ["RED", "BLUE"]}},
        {"name": "cut", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}],
         "default": None},
        {"name": "photo", "type": "bytes", "default": "\u00ff"},
    ],
}  # fmt: skip
ROSE = {"petals": 5, "names": ["r"], "color": "RED", "cut": "2020-01-31T12:30:00.250000Z",
        "photo": "/w=="}  # fmt: skip


def derived(schema: Any) -> Any:
    """Derive an Avro schema; what has none is told so, and is no case."""
    try:
        return avro.schema(schema, name="value")
    except SchemaError as error:
        assert "no Avro schema" in error.message
        assume(False)


def file_of(schema: Any, records: list[Any]) -> bytes:
    file = io.BytesIO()
    with avro.write(file, schema) as append:
        for record in records:
            append(record)
    return file.getvalue()


@FUZZ
@given(schemas_and_values())
def test_what_is_written_is_read(case: tuple[Any, Any]) -> None:
    """An equal value of the same types, alone and in a file; fastavro takes the schema as well."""
    json_schema, value = case
    schema = derived(json_schema)
    data = avro.dumps(value, schema)
    assert same(avro.loads(data, schema), value)
    assert same(list(avro.read(io.BytesIO(file_of(schema, [value] * 3)))), [value] * 3)
    file = io.BytesIO(data)
    fastavro.schemaless_reader(file, fastavro.parse_schema(schema), None)
    assert not file.read()


@FUZZ
@given(schemas_and_values(), st.data())
def test_damaged_bytes_are_refused_or_mean_another_value(
    case: tuple[Any, Any], data: st.DataObject
) -> None:
    json_schema, value = case
    schema = derived(json_schema)
    good = avro.dumps(value, schema)
    at = data.draw(st.integers(0, len(good)))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 2)) :]
    try:
        found = avro.loads(bad, schema)
    except InputError as error:
        assert error.faults[0].path.startswith("data")
    else:
        assert same(avro.loads(avro.dumps(found, schema), schema), found)


@FUZZ
@given(st.data())
def test_damaged_files_are_refused_or_mean_other_records(data: st.DataObject) -> None:
    good = file_of(FLOWER, [ROSE] * 20)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=3)) + good[at + data.draw(st.integers(0, 3)) :]
    try:
        for record in avro.read(io.BytesIO(bad)):
            json.dumps(record, allow_nan=False)
    except InputError as error:
        assert error.faults[0].path.split(".")[0].rstrip(" 0123456789") in ("file", "record")


def long(number: int) -> bytes:
    return avro.dumps(number, "long")


STRINGS = {"type": "array", "items": "string"}
CORRUPT = [
    ("long", b"", "data: the data end"),
    ("long", b"\x02\x00", "data: 1 bytes more"),
    ("string", long(2**32) + b"abc", "data: the data end"),
    ("string", long(-1), "data: the data end"),
    ("string", long(1) + b"\xff", "data: text that is not valid Unicode"),
    (["null", "long"], b"\x01", "data: there is no branch or symbol -1"),
    (["null", "long"], b"\x04", "data: there is no branch or symbol 2"),
    ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, b"\x01", "data: there is no branch or"),
    (STRINGS, long(2**32), "data: the data end"),
    (STRINGS, long(-(2**63)) + b"\x00", "data: the data end"),
    (STRINGS, long(2) + long(0) + long(9), "data: the data end before the value does"),
    ({"type": "int", "logicalType": "date"}, long(2**30), "data: expected a date, as"),
    ({"type": "long", "logicalType": "timestamp-micros"}, long(2**62), "data: expected a date"),
    ({"type": "long", "logicalType": "time-micros"}, long(-1), "data: expected a time"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 3}, long(5000) + b"\x7f" * 5000,
     "data: expected a decimal number as text"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "data", "message"), CORRUPT, ids=[each[2] for each in CORRUPT])
def test_what_corrupt_bytes_are_refused_for(schema: Any, data: bytes, message: str) -> None:
    """Whatever they claim, they take no memory and end no process."""
    with pytest.raises(InputError) as caught:
        avro.loads(data, schema)
    assert str(caught.value).startswith(message)


def test_the_path_leads_to_what_is_wrong() -> None:
    items = {"type": "array", "items": FLOWER}
    schema = {"type": "record", "name": "R", "fields": [{"name": "my_items", "type": items,
              "jsonName": "my items"}]}  # fmt: skip
    bad = {"my items": [ROSE, {**ROSE, "petals": "5"}]}
    with pytest.raises(OutputError) as caught:
        avro.dumps(bad, schema)
    assert str(caught.value) == "result[\"my items\"][1].petals: expected int, got '5'"
    data = avro.dumps({"my items": [ROSE]}, schema)
    with pytest.raises(InputError, match=r"^data: there is no branch or symbol 5"):
        avro.loads(data.replace(b"\x02r\x00\x00", b"\x02r\x00\x0a"), schema)


UNFIT = [
    ("long", 2**63, "input should be less than or equal to 9223372036854775807, got"),
    ("long", True, "expected int, got True"),
    ("long", 1.0, "expected int, got 1.0"),
    ("double", "1", "expected float, got '1'"),
    ("string", "\ud800", "input should be a valid string, unable to parse raw data as a unicode"),
    ("bytes", "no base64", "expected base64 text, got 'no base64'"),
    ({"type": "fixed", "name": "F", "size": 2}, "/w==", "expected base64 text of 2 bytes, got"),
    ({"type": "long", "logicalType": "timestamp-micros"}, "2020-01-02T03:04:05",
     "expected a date and time with UTC offset"),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, "2020-01-02T03:04:05Z",
     "expected a date and time without UTC offset"),
    ({"type": "long", "logicalType": "timestamp-micros"}, "2020-01-02T03:04:05.1234567Z",
     "expected a date and time with"),
    ({"type": "long", "logicalType": "timestamp-micros"}, "9999-12-31T23:59:59-10:00",
     "expected a date and time with"),
    ({"type": "long", "logicalType": "timestamp-millis"}, "2020-01-02T03:04:05.000001Z",
     "expected a date and time with UTC offset, in ms, got"),
    ({"type": "int", "logicalType": "date"}, "2020-02-30", "expected a date"),
    ({"type": "string", "logicalType": "uuid"}, "x", "expected a UUID, got 'x'"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "1.005",
     "expected a decimal number as text"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "100",
     "expected a decimal number as text"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "1e999999",
     "expected a decimal number as text"),
    (FLOWER, {**ROSE, "more": 1}, "not expected here"),
    (FLOWER, {}, "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value", "message"), UNFIT, ids=[each[2] for each in UNFIT])
def test_what_does_not_fit_a_given_schema_is_refused(schema: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Codec(schema).normalize(value, root="data", error=InputError)
    assert caught.value.faults[0].message.startswith(message)


TEXTS = [
    ({"type": "long", "logicalType": "timestamp-micros"}, "2020-01-02 03:04+02:00",
     "2020-01-02T01:04:00Z"),
    ({"type": "long", "logicalType": "local-timestamp-millis"}, "1969-01-02T03:04:05.5",
     "1969-01-02T03:04:05.500000"),
    ({"type": "int", "logicalType": "time-millis"}, "03:04", "03:04:00"),
    ({"type": "int", "logicalType": "date"}, "0001-01-01", "0001-01-01"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, "-12.5", "-12.50"),
    ({"type": "fixed", "name": "D", "size": 4, "logicalType": "decimal", "precision": 6,
      "scale": 6}, "-.5e-1", "-0.050000"),
    ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"},
     "12345678-1234-5678-1234-567812345678", "12345678-1234-5678-1234-567812345678"),
    ({"type": "long", "logicalType": "timestamp-nanos"}, 5, 5),
    ("float", 0.1, 0.10000000149011612),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value", "found"), TEXTS, ids=[str(each[0]) for each in TEXTS])
def test_what_a_value_looks_like_afterwards(schema: Any, value: Any, found: Any) -> None:
    """Equal, in the form that the type has: instants in UTC, decimals with all digits."""
    assert avro.loads(avro.dumps(value, schema), schema) == found


def a(name: str, **fields: str) -> Any:
    return {"type": "record", "name": name,
            "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}  # fmt: skip


BRANCHES = [
    (["long", "double"], 1.0, 1), (["double", "long"], 1, 1), (["double", "null", "string"], 1, 0),
    (["float", "double"], 0.1, 1), (["float", "double"], 0.5, 1), (["int", "long"], 2**40, 1),
    ([a("A", x="double"), a("B", x="long")], {"x": 1}, 1),
    ([a("A", x="long"), a("B", x="long", y="long")], {"x": 1, "y": 2}, 1),
    ([a("A", x="long"), {"type": "map", "values": "double"}], {"x": 1.5}, 1),
    ([{"type": "long", "logicalType": "timestamp-micros"}, "string"], "2020-01-01T00:00+01:00", 1),
    ([{"type": "enum", "name": "E", "symbols": ["A"]}, "string"], "B", 1),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value", "branch"), BRANCHES)
def test_a_union_keeps_a_value_as_it_is(schema: Any, value: Any, branch: int) -> None:
    data = avro.dumps(value, schema)
    assert data[0] == branch * 2
    assert same(avro.loads(data, schema), float(value) if branch == 0 else value)


def test_a_recursive_schema_is_refused() -> None:
    """A million nested records end the process in fastavro."""
    fields = [{"name": "a", "type": ["null", "A"]}]
    second = {"type": "record", "name": "B", "fields": fields}
    first = {"type": "record", "name": "A", "fields": [{"name": "b", "type": ["null", second]}]}
    for schema, label in ((NODE, "Node"), (first, "A")):
        with pytest.raises(SchemaError, match=f"{label} contains itself, and recursive values can"):
            avro.loads(b"\x02" * 3_000_000, schema)
    file = io.BytesIO()
    fastavro.writer(file, NODE, [])
    file.seek(0)
    with pytest.raises(InputError, match=r"^file: .*Node contains itself"):
        list(avro.read(file))


def test_a_deep_schema_is_refused() -> None:
    schema: Any = "long"
    for _ in range(900):
        schema = {"type": "array", "items": schema}
    with pytest.raises(SchemaError, match="nested too deeply"):
        avro.loads(b"\x02", schema)


def test_a_schema_of_many_parts_is_refused() -> None:
    """Twenty types, each twice in the next, are a million values of no bytes."""
    schema: Any = {"type": "record", "name": "R0", "fields": [{"name": "x", "type": "null"}]}
    for number in range(1, 20):
        fields = [{"name": "x", "type": schema}, {"name": "y", "type": f"R{number - 1}"}]
        schema = {"type": "record", "name": f"R{number}", "fields": fields}
    with pytest.raises(SchemaError, match="more than 10000 parts"):
        avro.loads(b"", schema)


def test_a_key_that_is_there_twice_counts_once() -> None:
    """As in JSON: the last one."""
    data = long(2) + b"\x02a\x00\x02a\x04\x00"
    assert avro.loads(data, {"type": "map", "values": "long"}) == {"a": 2}


def test_what_is_read_leniently() -> None:
    """As docs/serializers.md says: neither can do harm, and the hints validate the values."""
    assert avro.loads(b"\x07", "boolean") is True
    assert avro.loads(b"\x82" + b"\x80" * 9 + b"\x00", "long") == 1


def test_absent_is_not_null() -> None:
    schema = avro.schema(
        {"type": "object", "properties": {"x": {"type": "integer"}}, "title": "R"}, name="r"
    )
    assert avro.loads(avro.dumps({}, schema), schema) == {}
    with pytest.raises(InputError, match=r"data\.x: expected int, got None"):
        Codec(schema).normalize({"x": None}, root="data", error=InputError)


def test_a_default_stands_for_what_is_absent() -> None:
    whole = {**ROSE, "names": [], "cut": None, "photo": "/w=="}
    data = avro.dumps({"petals": 5, "color": "RED"}, FLOWER)
    assert avro.loads(data, FLOWER) == whole


def test_files_of_fastavro_are_read() -> None:
    file = io.BytesIO()
    records = [{"petals": each, "color": "BLUE", "names": ["a"] * each, "photo": b"\xff"}
               for each in range(400)]  # fmt: skip
    fastavro.writer(file, FLOWER, records, codec="deflate", sync_interval=500)
    file.seek(0)
    found = list(avro.read(file))
    assert found[2] == {"petals": 2, "names": ["a", "a"], "color": "BLUE", "cut": None,
                        "photo": "/w=="}  # fmt: skip
    assert [each["petals"] for each in found] == list(range(400))


def test_files_are_read_by_fastavro_and_are_the_same_each_time() -> None:
    records = [{**ROSE, "petals": each} for each in range(3000)]
    data = file_of(FLOWER, records)
    assert data == file_of(FLOWER, records)
    reader: Any = fastavro.reader(io.BytesIO(data))
    found = list(reader)
    assert (len(found), found[7]["petals"], found[7]["photo"]) == (3000, 7, b"\xff")
    assert (reader.codec, reader.writer_schema["name"]) == ("deflate", "garden.Flower")


def test_a_file_is_held_to_a_schema_that_is_given() -> None:
    """As Avro resolves: members it does not have are dropped, its defaults are filled in."""
    data = file_of(FLOWER, [ROSE])
    height = {"name": "height", "type": "long", "default": 3}
    fields = [{"name": "petals", "type": "double"}, height]
    other = {"type": "record", "name": "Other", "fields": fields}
    assert same(list(avro.read(io.BytesIO(data), other)), [{"petals": 5.0, "height": 3}])
    lacking = {**other, "fields": [{"name": "thorns", "type": "long"}]}
    with pytest.raises(InputError, match=r"^record 1\.thorns: missing"):
        list(avro.read(io.BytesIO(data), lacking))


class Pipe(io.RawIOBase):
    """A file that cannot be sought, and counts what was read."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self.file.read(size)


def test_records_come_while_the_file_is_read() -> None:
    data = file_of("long", list(range(100_000)))
    pipe = Pipe(data)
    records = avro.read(pipe)  # type: ignore[arg-type]
    assert [next(records) for _ in range(10)] == list(range(10))
    assert pipe.file.tell() < len(data) / 3


def test_a_file_is_whole_even_if_what_writes_it_fails() -> None:
    file = io.BytesIO()
    with pytest.raises(OutputError, match="result: expected int"), avro.write(file, "long") as app:
        app(1)
        app("2")
    assert list(avro.read(io.BytesIO(file.getvalue()))) == [1]
    assert list(avro.read(io.BytesIO(file_of("long", [])))) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"{}\n", b"Obj\x01", b"Obj\x01\xff\xff", file_of("long", [1] * 9)[:-5]],
    ids=["nothing", "JSON", "magic", "header", "cut off"],
)
def test_what_is_no_avro_file(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^file: not an Avro file, or damaged: "):
        list(avro.read(io.BytesIO(data)))


def test_a_codec_is_made_once() -> None:
    schema = ["null", "long"]
    serializer = AvroSerializer()
    assert serializer._codec(schema) is serializer._codec(schema)
    assert serializer.loads(long(0), "long") == 0
    schemas = [{"type": "array", "items": "long"} for _ in range(100)]
    assert all(serializer.loads(b"\0", each) == [] for each in schemas)
    assert len(serializer._codecs) < 100
