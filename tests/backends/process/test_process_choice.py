"""Which interpreter is found, and which backend is chosen."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest

from mfimage.backends.choice import open_backend
from mfimage.backends.local import LocalBackend
from mfimage.backends.process import environments
from mfimage.backends.process.backend import ProcessBackend
from mfimage.backends.process.environments import find_interpreter
from mfimage.backends.satisfies import difference
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, write_pylock
from mfimage.errors import BackendError, OptionError
from tests.backends.process_support import PYTHON, Packages

pytest_plugins = ["tests.backends.process_fixtures"]

MINOR = "{}.{}".format(*sys.version_info)
ECHO = """
@json_function
def predict(data: dict) -> dict:
    return data
"""


class TestInterpreters:
    def test_this_one_first(self) -> None:
        assert find_interpreter(MINOR) == Path(sys.executable)

    @pytest.fixture
    def bare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Nothing to be found but what a test puts there."""
        monkeypatch.setattr(environments.sys, "executable", "")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
        monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
        return tmp_path

    def _put(self, path: Path, answer: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{answer}\n")
        path.chmod(0o755)
        return path

    def test_none(self, bare: Path) -> None:
        with pytest.raises(BackendError, match=r"no Python 3\.12") as caught:
            find_interpreter("3.12")
        assert "uv python install 3.12" in str(caught.value.hint)

    def test_path_pyenv_and_uv_in_order(self, bare: Path) -> None:
        good = "echo cpython 3.12 True"
        by_uv = self._put(bare / "uv/cpython-3.12.3-linux-x86_64-gnu/bin/python3.12", good)
        assert find_interpreter("3.12") == by_uv
        self._put(bare / "pyenv/versions/3.12.9/bin/python3.12", good)
        newest = self._put(bare / "pyenv/versions/3.12.10/bin/python3.12", good)
        assert find_interpreter("3.12") == newest
        # A shim of pyenv whose version is switched off.
        self._put(bare / "bin/python3.12", "echo 'command not found' >&2; exit 127")
        assert find_interpreter("3.12") == newest
        on_path = self._put(bare / "bin/python3.12", good)
        assert find_interpreter("3.12") == on_path

    @pytest.mark.parametrize(
        "answer",
        ["pypy 3.12 True", "cpython 3.11 True", "cpython 3.12 False", "", "$(exit 1)"],
    )
    def test_others_do_not_count(self, bare: Path, answer: str) -> None:
        self._put(bare / "bin/python3.12", f"echo {answer}")
        with pytest.raises(BackendError, match=r"no Python 3\.12"):
            find_interpreter("3.12")


class TestChoice:
    def test_same_versions_run_locally(
        self, process_packages: Packages, caplog: pytest.LogCaptureFixture
    ) -> None:
        package = process_packages.write(ECHO)
        assert difference(package) is None
        with caplog.at_level(logging.INFO, "mfimage"):
            for _ in range(2):
                backend = open_backend(package)
                assert isinstance(backend, LocalBackend)
                backend.close()
        assert [r.getMessage() for r in caplog.records if r.name == "mfimage"] == [
            "predict runs in this process (backend 'local'): this interpreter satisfies its lock"
        ]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"orjson": "0.1"}, "orjson 0.1 is locked, and .* is installed here"),
            ({"not-there": "1.0"}, "not-there 1.0 is locked, and not installed here"),
        ],
    )
    def test_other_versions(
        self, process_packages: Packages, change: dict[str, str], reason: str
    ) -> None:
        target = Platform(python=PYTHON, name="linux/amd64")
        file = WheelFile(name="a-1-py3-none-any.whl", sha256="0" * 64)
        lock = write_pylock(
            [LockedPackage(name=name, version=v, files=(file,)) for name, v in change.items()],
            target,
        )
        environment = process_packages.environment(lock=process_packages.store.put_bytes(lock))
        found = difference(process_packages.write(ECHO, environment=environment))
        assert found
        assert re.fullmatch(reason, found)

    def test_other_python(self, process_packages: Packages) -> None:
        environment = process_packages.environment(python="3.9.1")
        package = process_packages.write(ECHO, environment=environment)
        assert difference(package) == f"this is Python {MINOR}, and the lock is for 3.9"

    def test_explicit(self, process_packages: Packages, caplog: pytest.LogCaptureFixture) -> None:
        package = process_packages.write(ECHO + "# explicit\n")
        with caplog.at_level(logging.INFO, "mfimage"):
            backend = open_backend(package, "process")
        assert isinstance(backend, ProcessBackend)
        assert backend({"x": 1}) == {"x": 1}
        backend.close()
        assert "(backend 'process'): backend= is given" in caplog.text
        by_options = open_backend(package, workers=1)
        assert isinstance(by_options, ProcessBackend)
        by_options.close()

    def test_invalid_options(self, process_packages: Packages) -> None:
        package = process_packages.write(ECHO)
        with pytest.raises(OptionError, match=r"backend: expected 'local', .*, got 'remote'"):
            open_backend(package, "remote")
        with pytest.raises(OptionError, match="'local' runs in this process"):
            open_backend(package, "local", timeout=1)
        with pytest.raises(OptionError, match="workers: expected at least 1"):
            open_backend(package, workers=0)

    def test_lock_that_cannot_be_read(
        self, process_packages: Packages, caplog: pytest.LogCaptureFixture
    ) -> None:
        nothing = process_packages.store.put_bytes(b"")
        package = process_packages.write(
            ECHO, environment=process_packages.environment(lock=nothing)
        )
        with caplog.at_level(logging.INFO, "mfimage"):
            backend = open_backend(package)
        assert isinstance(backend, LocalBackend)
        backend.close()
        assert "its lock cannot be read" in caplog.text
