"""The process backend: the same values and the same errors as anywhere."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.local import LocalBackend
from mfimage.backends.process import ProcessBackend, ProcessOptions
from mfimage.errors import BackendError, InputError, OptionError, OutputError, PackageError
from mfimage.runtime.remote_errors import FunctionError, RemoteTraceback
from tests.backends.process_support import Packages, children

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]

ECHO = """
@json_function
def predict(data: dict) -> dict:
    return data
"""


class Odd(Exception):
    """An exception of a module that is imported here, and that needs two arguments."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(f"{first} {second}")
        self.second = second


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


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"x": None, "y": [1, 2.5, "ü\n\u2028", True], "z": {"": 1 << 70}},
        {"x": "a" * 1_000_000},
        {"deep": [[[[{}]]]]},
        {"wrong": float("nan")},
        {"wrong": object()},
        [1],
        "text",
        None,
    ],
)
def test_same_as_local(run_process: Run, process_packages: Packages, record: Any) -> None:
    local = LocalBackend(process_packages.write(ECHO))
    process = run_process(ECHO)
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
def test_64_threads_get_their_own_answers(run_process: Run, workers: int) -> None:
    predict = run_process(ECHO, workers=workers)
    start = threading.Barrier(64)

    def ask(thread: int) -> bool:
        start.wait()
        return all(predict({"x": [thread, i]}) == {"x": [thread, i]} for i in range(50))

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(ask, range(64)))
    assert len(children()) == workers


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("ValueError('a', 1, None, (b'x', [2.5]))", ValueError("a", 1, None, (b"x", [2.5]))),
        ("KeyError('x')", KeyError("x")),
        ("FileNotFoundError(2, 'No such file', 'f')", FileNotFoundError(2, "No such file", "f")),
        (
            "UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'invalid start byte')",
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ),
        ("ZeroDivisionError('division by zero')", ZeroDivisionError("division by zero")),
    ],
)
def test_exception_arrives_as_itself(run_process: Run, raised: str, expected: Exception) -> None:
    predict = run_process(
        f"""
        @json_function
        def predict(data: dict) -> dict:
            raise {raised}
        """
    )
    with pytest.raises(type(expected)) as caught:
        predict({})
    assert type(caught.value) is type(expected)
    assert caught.value.args == expected.args
    assert str(caught.value) == str(expected)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert 'served.py", line' in str(cause)
    assert "worker.py" not in str(cause)


def test_exception_of_a_class_that_is_imported_here(run_process: Run) -> None:
    predict = run_process(
        f"""
        Odd = type("Odd", (Exception,), {{"__module__": {__name__!r}}})
        @json_function
        def predict(data: dict) -> dict:
            error = Odd("one 2")
            error.second, error.more = 2, object()
            error.add_note("a note") if hasattr(error, "add_note") else None
            raise error from KeyError("why")
        """
    )
    with pytest.raises(Odd, match="one 2") as caught:
        predict({})
    assert caught.value.second == 2
    assert not hasattr(caught.value, "more")
    assert "KeyError: 'why'" in str(caught.value.__cause__)
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["a note"]


def test_exception_of_a_class_that_is_not_here(run_process: Run) -> None:
    predict = run_process(
        """
        class Own(Exception): pass
        @json_function
        def predict(data: dict) -> dict:
            raise Own("mine")
        """
    )
    with pytest.raises(FunctionError, match=r"served\.Own: mine") as caught:
        predict({})
    assert caught.value.type_name == "served.Own"
    assert "raise Own" in str(caught.value.__cause__)


def test_no_module_is_imported_at_the_workers_word(run_process: Run) -> None:
    predict = run_process(
        """
        @json_function
        def predict(data: dict) -> dict:
            import antigravity_not_really
        """
    )
    with pytest.raises(ModuleNotFoundError, match="antigravity_not_really"):
        predict({})
    other = run_process(
        """
        import this as module
        class Error(Exception): pass
        Error.__module__ = "this"
        @json_function
        def predict(data: dict) -> dict:
            raise Error("x")
        """
    )
    with pytest.raises(FunctionError, match=r"this\.Error: x"):
        other({})
    assert "this" not in sys.modules


@pytest.mark.parametrize("raised", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"])
def test_what_would_end_the_caller_does_not(run_process: Run, raised: str) -> None:
    predict = run_process(
        f"""
        @json_function
        def predict(data: int) -> int:
            if data:
                raise {raised}
            return os.getpid()
        """
    )
    before = predict(0)
    with pytest.raises(FunctionError, match=raised.partition("(")[0]):
        predict(1)
    assert predict(0) == before


def test_output_goes_to_stderr(run_process: Run, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().setLevel(logging.INFO)
    try:
        predict = run_process(
            """
            @json_function
            def predict(data: int) -> int:
                print("printed", data, end="")
                os.system("echo shouted")
                logging.getLogger("mine").info("logged %s", data)
                logging.getLogger("mine").debug("not wanted")
                return data
            """
        )
        predict(7)
    finally:
        logging.getLogger().setLevel(logging.WARNING)
    out, err = capfd.readouterr()
    assert out == ""
    assert "printed 7" in err
    assert "shouted" in err
    assert "INFO mine: logged 7" in err
    assert "not wanted" not in err


def test_worker_sees_its_environment_only(
    run_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    monkeypatch.setenv("MINE", "kept")
    predict = run_process(
        """
        @json_function
        def predict(data: dict) -> dict:
            import importlib.util
            child = subprocess.run(
                [sys.executable, "-c", "import sys; print(sys.path)"], capture_output=True
            )
            return {
                "path": sys.path, "prefix": sys.prefix, "child": child.stdout.decode(),
                "mine": os.environ["MINE"], "which": subprocess.getoutput("command -v python"),
                "pytest": importlib.util.find_spec("pytest") is not None,
                "bind": importlib.util.find_spec("mfimage.bind") is not None,
                "stdin": sys.stdin.read(),
            }
        """
    )
    found = predict({})
    assert found["pytest"] is False
    assert found["bind"] is False
    assert found["mine"] == "kept"
    assert found["stdin"] == ""
    assert found["which"].startswith(found["prefix"])
    cache = found["prefix"].partition("/environments/")[0]
    for entry in found["path"]:
        assert entry.startswith((cache, sys.base_prefix)), entry
    assert "/nowhere" not in found["child"]
    assert sys.prefix == sys.base_prefix or sys.prefix not in found["child"]


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
        with pytest.raises(PackageError, match="does not have the digest"):
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
def test_options_that_make_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(given))):
        ProcessOptions(**given)
