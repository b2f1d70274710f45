"""The process backend: the same values and errors as on any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.local import LocalBackend
from mfimage.backends.process.backend import ProcessBackend, ProcessOptions
from mfimage.errors import BackendError, InputError, OptionError, OutputError, PackageError
from tests.backends.process_support import Packages, children

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]

ECHO = """
@json_function
def predict(data: dict) -> dict:
    return data
"""


def test_call(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: dict, params: FunctionParameters) -> dict:
            return {"y": data["x"] * params.factor, "pid": os.getpid()}
        """,
        artifacts={"factor": 3},
    )
    result = predict({"x": 2})
    assert result["y"] == 6
    assert result["pid"] in children()


def test_same_as_local(run_process: Run, process_packages: Packages) -> None:
    local = LocalBackend(process_packages.write(ECHO))
    process = run_process(ECHO)
    for record in (
        {},
        {"x": None, "y": [1, 2.5, "ü\n\u2028", True], "z": {"": 1 << 70}},
        {"x": "a" * 1_000_000},
        {"deep": [[[[{}]]]]},
        {"wrong": float("nan")},
        {"wrong": object()},
        [1],
        "text",
        None,
    ):
        assert _outcome(process, record) == _outcome(local, record)


def _outcome(backend: Any, record: Any) -> Any:
    try:
        return backend(record)
    except InputError as error:
        return type(error), error.message, error.faults, error.hint


def test_typed(run_process: Run) -> None:
    predict = run_process(
        """
        import datetime
        from typing import TypedDict
        class In(TypedDict):
            age: int
            day: datetime.date
        @json_function
        def predict(data: In) -> float:
            return data["age"] if isinstance(data["day"], datetime.date) else None
        """
    )
    result = predict({"age": 3, "day": "2024-01-01"})
    assert (result, type(result)) == (3.0, float)
    with pytest.raises(InputError, match=r"data\.age: expected int, got 'x'"):
        predict({"age": "x", "day": "2024-01-01"})


def test_output_error(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: dict) -> dict:
            return {"y": float("nan")}
        """
    )
    with pytest.raises(OutputError, match="nan") as caught:
        predict({})
    assert caught.value.faults[0].path == "result.y"


def test_batch_function(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function(batch=True)
        def predict(records: list[int]) -> list[dict]:
            if 13 in records:
                raise ValueError(f"unlucky in {len(records)}")
            return [{"x": x, "of": len(records)} for x in records]
        """,
        batch=True,
    )
    assert predict(4) == {"x": 4, "of": 1}
    found = list(predict.map(range(10), batch_size=4, on_error="raise"))
    assert found == [{"x": x, "of": 4 if x < 8 else 2} for x in range(10)]
    mixed = list(predict.map([1, "a", 13, 2], batch_size=4, on_error="return"))
    assert mixed[0] == {"x": 1, "of": 1}
    assert isinstance(mixed[1], InputError)
    assert isinstance(mixed[2], ValueError)
    assert mixed[3] == {"x": 2, "of": 1}


def test_async_function(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        async def predict(data: int) -> int:
            await asyncio.sleep(0.001)
            return data + 1
        """
    )
    assert predict(1) == 2
    assert list(predict.map(range(20), batch_size=8, on_error="raise")) == list(range(1, 21))


def test_submit_and_acall(run_process: Run) -> None:
    predict = run_process(ECHO, workers=2)
    assert predict.submit({"x": 1}).result() == {"x": 1}
    with pytest.raises(InputError):
        predict.submit(object()).result()

    async def many() -> list[Any]:
        return await asyncio.gather(*(predict.acall({"x": x}) for x in range(50)))

    assert asyncio.run(many()) == [{"x": x} for x in range(50)]


def test_acall_leaves_the_loop_free(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: float) -> float:
            time.sleep(data)
            return data
        """
    )
    predict(0.0)

    async def ticks() -> int:
        call = asyncio.ensure_future(predict.acall(0.3))
        count = 0
        while not call.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    assert asyncio.run(ticks()) > 5


@pytest.mark.parametrize("workers", [1, 3])
def test_64_threads_get_their_own_results(run_process: Run, workers: int) -> None:
    predict = run_process(ECHO, workers=workers)
    start = threading.Barrier(64)

    def ask(thread: int) -> bool:
        start.wait()
        return all(predict({"x": [thread, i]}) == {"x": [thread, i]} for i in range(50))

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(ask, range(64)))
    assert len(children()) == workers


def test_stream_keeps_its_backend(run_process: Run, process_packages: Packages) -> None:
    stream = ProcessBackend(process_packages.write(ECHO)).map(
        [{"x": x} for x in range(100)], batch_size=3, on_error="raise"
    )
    assert [result["x"] for result in stream] == list(range(100))


def test_function_that_cannot_be_imported(run_process: Run) -> None:
    predict = run_process("import not_there_at_all")
    for _ in range(2):
        with pytest.raises(PackageError, match="needs the module 'not_there_at_all'"):
            predict({})


def test_artifact_that_is_damaged(run_process: Run, process_packages: Packages) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: dict, params: FunctionParameters) -> dict:
            return params.blob
        """,
        artifacts={"blob": {"a": "damaged later"}},
    )
    root = process_packages.store.storage.url("blobs/sha256")
    (path,) = [p for p in Path(root).iterdir() if b"damaged later" in p.read_bytes()]
    path.write_bytes(path.read_bytes().replace(b"later", b"later."))
    try:
        with pytest.raises(PackageError, match="does not match the digest"):
            predict({})
    finally:
        path.unlink()


def test_several_backends_and_closing(run_process: Run) -> None:
    first, second = run_process(ECHO), run_process(ECHO)
    assert first({"x": 1}) == second({"x": 1})
    first.close()
    first.close()
    with pytest.raises(BackendError, match="predict was closed"):
        first({"x": 1})
    assert second({"x": 2}) == {"x": 2}


@pytest.mark.parametrize(
    "given", [{"workers": 0}, {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}]
)
def test_invalid_options(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(given))):
        ProcessOptions(**given)
