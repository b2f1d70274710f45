"""Parquet as a format of records: a row is a record."""

import contextlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from mfimage.errors import SchemaError

TYPES = {"integer": "int64", "number": "double", "string": "string", "boolean": "bool"}


class Parquet:
    """Reads any table; writes tables with the columns of the function's hints."""

    name = "parquet"
    media_type = "application/vnd.apache.parquet"
    suffixes = (".parquet",)

    def schema(self, json_schema, *, name):
        many = json_schema.get("type") == "array"
        columns = (json_schema["items"] if many else json_schema).get("properties", {})
        types = {key: TYPES.get(each.get("type")) for key, each in columns.items()}
        return {"many": many, "types": types if all(types.values()) else {}}

    def dumps(self, value, schema):
        rows = pa.array(value if schema["many"] else [value])
        pq.write_table(pa.Table.from_struct_array(rows), file := io.BytesIO())
        return file.getvalue()

    def loads(self, data, schema):
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        [value] = [rows] if schema["many"] else rows
        return value

    def read(self, file, schema):
        for rows in pq.ParquetFile(file).iter_batches():
            yield from rows.to_pylist()

    @contextlib.contextmanager
    def write(self, file, schema):
        if not schema["types"]:
            raise SchemaError("parquet: hint a TypedDict of int, float, str and bool")
        rows = []
        with pq.ParquetWriter(file, pa.schema(schema["types"])) as writer:

            def append(row):
                rows.append(row)
                if len(rows) == 10_000:  # a row group
                    writer.write_table(pa.Table.from_pylist(rows, writer.schema))
                    rows.clear()

            yield append
            writer.write_table(pa.Table.from_pylist(rows, writer.schema))
