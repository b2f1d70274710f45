from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import PackageError, ReferenceNotFound
from mfimage.load import JsonFunction, function_from_json
from mfimage.runtime.layout import RUNTIME_FILES
from tests.support.packages import PREDICT, make_package
from tests.support.projects import python, write

ROOT = Path(__file__).parents[1]


def test_a_reference_becomes_a_function(tmp_path: Path) -> None:
    reference = make_package(tmp_path)
    for spelling in (reference, Path(reference), Path(reference).parent, Path(reference).as_uri()):
        function = function_from_json(spelling)
        assert isinstance(function, JsonFunction)
        assert function({"x": 2}) == {"y": 6}
        assert (function.reference, function.name) == (reference, "predict")
    assert repr(function) == "<JsonFunction predict of IrisFlow/1/train/2>"


def test_a_faulty_package_is_an_error_at_once(tmp_path: Path) -> None:
    reference = Path(make_package(tmp_path))
    with pytest.raises(ReferenceNotFound):
        function_from_json(tmp_path / "functions" / "predict" / "0" / "function.json")
    data = reference.read_bytes()
    reference.write_bytes(data.replace(b'"schema_version": "1.0"', b'"schema_version": "3.0"'))
    with pytest.raises(PackageError, match=r"schema_version 3\.0 is newer") as caught:
        function_from_json(reference)
    assert "pip install 'mfimage>=3'" in str(caught.value.hint)
    reference.write_bytes(data)
    for blob in (tmp_path / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    with pytest.raises(PackageError, match="missing"):
        function_from_json(reference)


def test_it_is_pickled_as_its_reference(tmp_path: Path) -> None:
    function = function_from_json(make_package(tmp_path))
    assert pickle.loads(pickle.dumps(function)).reference == function.reference
    (tmp_path / "pickle").write_bytes(pickle.dumps(function))
    code = "import pickle; print(pickle.load(open('pickle', 'rb'))({'x': 2}))"
    assert python(["-c", code], folder=tmp_path).stdout == "{'y': 6}\n"


def test_an_image_can_import_but_not_bind_or_load(tmp_path: Path) -> None:
    """The function's own file may well say ``from metaflow import JsonFunction``."""
    for pattern in RUNTIME_FILES:
        for path in ROOT.glob(pattern):
            write(tmp_path, {path.relative_to(ROOT).as_posix(): path.read_text()})
    code = (
        "from mfimage import pipeline\n"
        "from mfimage.load import JsonFunction, function_from_json as load\n"
        "for call in (lambda: JsonFunction(None, 'F'), lambda: load('x'), lambda: pipeline('x')):\n"
        "    try: call()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = python(["-c", code], folder=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    message = "BackendError functions cannot be bound or loaded here: only mfimage's runtime is"
    assert [line[: len(message)] for line in done.stdout.splitlines()] == [message] * 3


_APP = """
import asyncio
from fastapi import FastAPI
from mfimage.load import function_from_json

app = FastAPI()
plain = function_from_json({plain!r})
later = function_from_json({later!r})

@app.post("/def")
def by_def(payload: dict): return plain(payload)

@app.post("/async")
async def by_async(payload: dict): return plain(payload)

@app.post("/def-later")
def by_def_later(payload: dict): return later(payload)

@app.post("/async-later")
async def by_async_later(payload: dict): return later(payload)

@app.post("/acall")
async def by_acall(payload: dict): return await plain.acall(payload)

@app.post("/acall-later")
async def by_acall_later(payload: dict): return await later.acall(payload)
"""
LATER = PREDICT.replace("def predict", "async def predict").replace(
    "    return", "    import asyncio\n    await asyncio.sleep(0.002)\n    return"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """FastAPI as users write it, served by uvicorn in a process of its own."""
    folder = tmp_path_factory.mktemp("app")
    plain = make_package(folder / "root")
    later = make_package(folder / "root", {"predict.py": LATER})
    write(folder, {"app.py": _APP.format(plain=plain, later=later)})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], cwd=folder, stdout=log, stderr=log
        )
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            assert process.wait(10) in (0, -15)
    assert (folder / "log").read_text() == ""


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        time.sleep(0.05)
    raise AssertionError("the server did not start")


ENDPOINTS = ["def", "async", "def-later", "async-later", "acall", "acall-later"]


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_fastapi_with_64_connections(endpoint: str, server: int) -> None:
    """No "owned by another thread", no blocked loop, no wrong answer."""

    async def connection(number: int) -> list[Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server)
        answers = []
        for i in range(8):
            body = json.dumps({"x": number * 10 + i})
            head = f"POST /{endpoint} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(answered.partition("content-length: ")[2].partition("\r\n")[0])
            answers.append((answered.split()[1], json.loads(await reader.readexactly(length))))
        writer.close()
        await writer.wait_closed()
        return answers

    async def main() -> list[list[Any]]:
        return await asyncio.gather(*map(connection, range(64)))

    found = asyncio.run(asyncio.wait_for(main(), 60))
    assert found == [[("200", {"y": (n * 10 + i) * 3}) for i in range(8)] for n in range(64)]


def test_options_reach_the_package(bound_calls: Mapping[str, str]) -> None:
    spec = function_from_json(bound_calls["settings"]).spec
    assert json.loads(spec.to_json())["parameter_schema"]["required"] == ["labels"]
    assert spec.environment.source == "imports"
