"""What a worker sees, starts and prints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest

from mfimage.backends.process.backend import ProcessBackend
from tests.backends.process_support import Packages

pytest_plugins = ["tests.backends.process_fixtures"]
Run = Callable[..., ProcessBackend]


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


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_function_that_starts_processes(run_process: Run, method: str) -> None:
    predict = run_process(
        """
        def square(x):
            return x * x
        @json_function
        def predict(data: str) -> list[int]:
            import multiprocessing
            with multiprocessing.get_context(data).Pool(2) as pool:
                return pool.map(square, range(4))
        """
    )
    assert predict(method) == [0, 1, 4, 9]


def test_function_that_is_written_with_metaflow(
    run_process: Run, process_packages: Packages
) -> None:
    requests = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")
    predict = run_process(
        """
        import metaflow
        import mfimage.function.decorator
        from metaflow import json_function, FunctionParameters
        assert json_function is mfimage.function.decorator.json_function
        @json_function
        def predict(data: dict, params: FunctionParameters) -> str:
            return metaflow.__file__
        """,
        environment=process_packages.environment("metaflow", *requests),
    )
    assert "/environments/" in predict({})
