from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import MfimageError, OutputError, PackageError
from mfimage.package.archive import unpack
from mfimage.package.store import open_package
from mfimage.runtime.loading import loader
from mfimage.runtime.loading.loader import LiveFunction, load_folder, load_function
from tests.support.packages import make_package
from tests.support.projects import write

DECORATED = "from mfimage.function.decorator import json_function\n"
PARAMS = "from mfimage.function.parameters import FunctionParameters\n"


def load(root: Path, source: str, artifacts: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Load what a package of one file holds, in this process."""
    package = open_package(make_package(root, {"predict.py": source}, artifacts or {}, **changes))
    code = write(root / "code" / package.spec.code.hex, {"predict.py": source})
    return load_function(package.spec, code=code, read_blob=package.read, dedicated=False)


def test_parse_invoke_and_dump(tmp_path: Path) -> None:
    source = f"{DECORATED}{PARAMS}" + (
        "@json_function\n"
        "def predict(data: dict[str, float], params: FunctionParameters) -> float:\n"
        "    return data['x'] * params.factor\n"
    )
    fn: LiveFunction = load(tmp_path, source, {"factor": 2.0})
    assert fn.dump(fn.invoke(fn.parse(b'{"x": 3}'))) == b"6.0"
    assert fn({"x": 3}) == 6.0
    assert (fn.name, fn.batch, fn.is_async) == ("predict", False, False)
    assert fn.digest == fn.spec.digest
    assert fn.digest.startswith("sha256:")


BATCH = f"{DECORATED}{PARAMS}" + (
    "CALLS = []\n"
    "@json_function(batch=True)\n"
    "def predict(data: list[int], params: FunctionParameters) -> list[int]:\n"
    "    CALLS.append(list(data))\n"
    "    if 13 in data: raise ValueError('unlucky')\n"
    "    if 0 in data: return [1, 2, 3]\n"
    "    if -1 in data: return {}\n"
    "    import numpy\n"
    "    return numpy.array(data) * params.factor\n"
)


def test_a_batch_is_one_call_and_one_bad_record_fails_alone(tmp_path: Path) -> None:
    fn = load(tmp_path, BATCH, {"factor": 2})
    calls = sys.modules[fn._fn.__module__].CALLS
    assert fn.invoke_many([1, 2, 3]) == [2, 4, 6]
    assert calls == [[1, 2, 3]]
    places = fn.results([1, "x", 13, 4])
    assert (places[0], places[3]) == (2, 8)
    assert str(places[1]) == "data: expected int, got 'x'"
    assert repr(places[2]) == "ValueError('unlucky')"
    assert calls[1:] == [[1, 13, 4], [1], [13], [4]]
    assert fn(5) == 10, "a single call wraps it"
    assert fn.invoke_many([]) == []


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([0, 1], "result: expected 2 results for 2 records, got 3"),
        ([0], "result: expected 1 results for 1 records, got 3"),
        ([-1, 2], "result: expected a list of 2, got dict"),
    ],
)
def test_a_batch_of_another_length_is_an_error(
    records: list[int], message: str, tmp_path: Path
) -> None:
    places = load(tmp_path, BATCH, {"factor": 2}).invoke_many(records)
    assert [str(place) for place in places] == [message] * len(records)
    assert all(isinstance(place, OutputError) for place in places)


ASYNC = f"{DECORATED}{PARAMS}" + (
    "import asyncio, threading\n"
    "@json_function\n"
    "async def predict(data: dict, params: FunctionParameters) -> dict:\n"
    "    await asyncio.sleep(0.01)\n"
    "    return {'x': data['x'], 'thread': threading.current_thread().name}\n"
)


def test_an_async_function_is_awaited_from_any_caller(tmp_path: Path) -> None:
    fn = load(tmp_path, ASYNC)
    assert fn({"x": 1}) == {"x": 1, "thread": "mfimage-predict"}

    async def inside() -> list[Any]:
        here = fn({"x": 2})  # from a running loop, which it must not need
        return [here, *await asyncio.gather(*(fn.acall({"x": i}) for i in range(50)))]

    found = asyncio.run(inside())
    assert [each["x"] for each in found] == [2, *range(50)]
    assert found[-1]["thread"] == threading.current_thread().name, "on the caller's loop"
    with ThreadPoolExecutor(32) as pool:
        assert [r["x"] for r in pool.map(fn, [{"x": i} for i in range(64)])] == [*range(64)]
    fn.close()
    assert not any(thread.name == "mfimage-predict" for thread in threading.enumerate())
    assert fn({"x": 3})["x"] == 3, "a later call starts it again"
    fn.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads
def test_a_forked_process_has_a_loop_of_its_own(tmp_path: Path) -> None:
    fn = load(tmp_path, ASYNC)
    assert fn({"x": 1})["x"] == 1
    child = os.fork()
    if not child:
        os._exit(fn({"x": 7})["x"])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    fn.close()


def test_64_threads_call_one_function_and_each_artifact_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    really = loader.load_artifact

    def counting(name: str, *rest: Any) -> Any:
        loaded.append(name)
        return really(name, *rest)

    monkeypatch.setattr(loader, "load_artifact", counting)
    source = f"{DECORATED}{PARAMS}" + (
        "@json_function\n"
        "def predict(data: dict, params: FunctionParameters) -> int:\n"
        "    return data['x'] * params.factor + params.offset\n"
    )
    fn = load(tmp_path, source, {"factor": 3, "offset": 1, "unused": 5})
    barrier = threading.Barrier(64)

    def call(number: int) -> Any:
        barrier.wait()
        return [fn({"x": number + i}) for i in range(10)]

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(call, range(64)))
    assert found == [[(n + i) * 3 + 1 for i in range(10)] for n in range(64)]
    assert sorted(loaded) == ["factor", "offset"]


def test_a_function_cannot_change_the_package_values(tmp_path: Path) -> None:
    source = f"{DECORATED}{PARAMS}" + (
        "@json_function\n"
        "def predict(data: int, params: FunctionParameters) -> list[int]:\n"
        "    params.seen.append(data)\n"
        "    return params.seen\n"
    )
    fn = load(tmp_path, source, parameters={"seen": [0]})
    assert fn(1) == [0, 1]
    assert fn.spec.parameters == {"seen": [0]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere\n", "predict: importing predict needs the module 'nowhere', which is not"),
        ("import predict.gone\n", "needs the module 'predict.gone', which is not installed here"),
        ("1 / 0\n", "predict: importing predict failed: ZeroDivisionError: division by zero"),
        ("def predict(:\n", "predict: importing predict failed: SyntaxError: "),
        ("import sys\nsys.exit(3)\n", "predict: importing predict failed: SystemExit: 3"),
        ("def predict(data): ...\n", "predict:predict is not a decorated function"),
        ("", "predict:predict is not a decorated function"),
        (
            f"{DECORATED}@json_function\ndef predict(data: 'Gone') -> int: ...\n",
            "predict: name 'Gone' is not defined in its type hints",
        ),
    ],
)
def test_code_that_cannot_be_loaded(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MfimageError) as caught:
        load(tmp_path, source)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "entrypoint", ["os:system", "subprocess:Popen", "builtins:eval", "predict"]
)
def test_an_entrypoint_must_be_a_decorated_function(entrypoint: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is not a decorated function"):
        load(tmp_path, "", entrypoint=entrypoint)


def test_a_folder_is_verified_before_anything_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = f"cbuiltins\nopen\n(V{mark}\nVw\ntR.".encode()
    package = open_package(make_package(tmp_path / "root"))
    folder = tmp_path / "image"
    folder.mkdir()
    unpack(package.spec, package.store, folder)
    ref = package.spec.artifacts["factor"]
    blob = folder / "blobs" / "sha256" / ref.hex
    kept = blob.read_bytes()
    before = list(sys.path)
    try:
        fn = load_folder(folder)
        blob.write_bytes(evil)
        with pytest.raises(PackageError, match="does not match the digest in its name"):
            fn({"x": 2})
        blob.unlink()
        with pytest.raises(PackageError, match="No such file"):
            fn({"x": 2})
        blob.write_bytes(kept)
        assert fn({"x": 2}) == {"y": 6}, "an artifact that failed is tried again"
        assert not mark.exists()
        json = folder / "function.json"
        json.write_bytes(json.read_bytes().replace(b"2026-11-20", b"2026-11-21"))
        with pytest.raises(PackageError, match=r"function\.json: it is not as it was written"):
            load_folder(folder)
        json.unlink()
        with pytest.raises(PackageError, match="No such file"):
            load_folder(folder)
    finally:
        sys.path[:] = before
        sys.modules.pop("predict", None)
