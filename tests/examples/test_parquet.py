"""The Parquet example: short, and every command of its README does what it says."""

from __future__ import annotations

import importlib
import io
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mfimage.errors import SchemaError
from tests.runtime.servers import Server

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
BIN = Path(sys.executable).parent
TYPE = "application/vnd.apache.parquet"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}}


@pytest.fixture
def parquet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's serializer."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "parquet"))
    module: ModuleType = importlib.import_module("parquet")
    monkeypatch.delitem(sys.modules, "parquet")
    return module.Parquet()


def test_it_is_under_forty_lines() -> None:
    lines = (EXAMPLES / "parquet" / "parquet.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) < 40


def test_files_go_by_row_groups(parquet: Any) -> None:
    file = io.BytesIO()
    rows = [{"n": i if i % 2 else None, "s": str(i)} for i in range(25_000)]
    with parquet.write(file, parquet.schema(SCHEMA, name="x")) as append:
        for row in rows:
            append(row)
    table = pq.ParquetFile(io.BytesIO(file.getvalue()))
    assert table.num_row_groups == 3
    assert table.schema_arrow == pa.schema({"n": "int64", "s": "string"})
    found = parquet.read(io.BytesIO(file.getvalue()), None)
    assert list(itertools.islice(found, 2)) == rows[:2]
    assert list(found) == rows[2:]


def test_values_and_batches(parquet: Any) -> None:
    one = parquet.schema(SCHEMA, name="x")
    many = parquet.schema({"type": "array", "items": SCHEMA}, name="x")
    row = {"n": 1, "s": "x"}
    assert parquet.loads(parquet.dumps(row, one), one) == row
    assert parquet.loads(parquet.dumps([row, row], many), many) == [row, row]
    with pytest.raises(ValueError, match="too many values"):
        parquet.loads(parquet.dumps([row, row], many), one)
    with pytest.raises(SchemaError), parquet.write(io.BytesIO(), parquet.schema({}, name="x")):
        pass


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the README's commands ran in, up to ``bind``; the reference."""
    folder = tmp_path_factory.mktemp("parquet")
    shutil.copytree(EXAMPLES / "parquet", folder, dirs_exist_ok=True)
    shutil.copy(EXAMPLES / "iris" / "train.py", folder)
    run(folder, "python", "train.py", "--quiet", "--no-pylint", "run")
    run(folder, "python", "flowers.py", "150", "flowers.parquet")
    run(folder, "python", "flowers.py", "1", "flower.parquet")
    reference = run(folder, "mfimage", "bind", "predict.py:predict", "--task", "IrisFlow")
    return folder, reference.strip()


def run(folder: Path, program: str, *arguments: str) -> str:
    environ = {**os.environ, "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder)}
    return subprocess.check_output([BIN / program, *arguments], cwd=folder, env=environ, text=True)


@pytest.mark.index
def test_from_a_table_to_a_table(bound: tuple[Path, str]) -> None:
    folder, reference = bound
    run(folder, "mfimage", "map", reference, "--input", "flowers.parquet", "--output", "o.parquet")
    irises = pq.read_table(folder / "o.parquet")
    assert irises.schema.remove_metadata() == pa.schema({"name": "string", "prediction": "int64"})
    assert irises["prediction"].value_counts().to_pylist()[0] == {"values": 0, "counts": 50}
    run(folder, "mfimage", "map", reference, "--input", "flowers.parquet", "--output", "o.jsonl")
    assert (folder / "o.jsonl").read_text().count("\n") == 150


@pytest.mark.index
def test_over_http(bound: tuple[Path, str]) -> None:
    folder, reference = bound
    server = Server(folder, command=[str(BIN / "mfimage"), "serve", reference])
    try:
        server.until_ready()
        one = post(server, "/predict", folder / "flower.parquet", Accept="application/json")
        assert one.json() == {"prediction": 2, "name": "virginica"}
        many = post(server, "/predict/batch", folder / "flowers.parquet")
        assert many.headers["Content-Type"] == TYPE
        results = pq.read_table(pa.BufferReader(many.content))["result"].to_pylist()
        assert (len(results), results[0]) == (150, {"prediction": 0, "name": "setosa"})
    finally:
        server.signal()  # its folder goes with it
        server.wait()


def post(server: Server, path: str, file: Path, **headers: str) -> httpx.Response:
    given = {"Content-Type": TYPE, **headers}
    return httpx.post(server.url + path, content=file.read_bytes(), headers=given, timeout=60)
