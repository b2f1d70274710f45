"""``function_from_json`` on the process backend."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfimage.errors import OptionError
from mfimage.load import function_from_json
from tests.backends.process_support import Packages, is_running

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.backends.process_fixtures"]

WHO = """
@json_function
def predict(data: dict) -> int:
    return os.getpid()
"""


def test_choice(process_packages: Packages) -> None:
    reference = process_packages.write(WHO).reference
    with function_from_json(reference) as local:
        assert local({}) == os.getpid()
    with function_from_json(reference, backend="process", workers=2) as process:
        assert process({}) != os.getpid()
        found = process.map([{}] * 20_000, batch_size=1, max_in_flight=4)
        assert len(set(found)) == 2
        with pickle.loads(pickle.dumps(process)) as again:
            assert again({}) not in (os.getpid(), process({}))
    with pytest.raises(OptionError, match="max_in_flight"):
        local.map([], max_in_flight=0)


def test_another_lock_goes_to_a_process(process_packages: Packages) -> None:
    environment = process_packages.environment("click")
    reference = process_packages.write(WHO, environment=environment).reference
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfimage.backends.satisfies.installed_version", lambda *_: "0.1")
        with function_from_json(reference) as process:
            assert process({}) != os.getpid()
            assert process({}) == process({})


MAKE = """
import sys
from mfimage.backends.process.environments import environment_python
from mfimage.package.store import open_package
environment_python(open_package(sys.argv[1]))
"""


def test_uv_ends_with_its_caller(
    process_packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A uv that takes its time.
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho $$ > {tmp_path / 'pid'}\nexec sleep 100\n")
    uv.chmod(0o755)
    monkeypatch.setenv("MFIMAGE_CACHE", str(tmp_path / "cache"))
    code = f"from mfimage.capture.lock import uv; uv.find_uv = lambda: {str(uv)!r}\n{MAKE}"
    package = process_packages.write(WHO)
    caller = subprocess.Popen([sys.executable, "-c", code, package.reference])
    limit = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < limit
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    while is_running(pid):
        assert time.monotonic() < limit
        time.sleep(0.01)
