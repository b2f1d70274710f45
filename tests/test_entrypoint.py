"""``mfimage call`` and ``mfimage serve``: an image's entrypoint on this machine."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import LockedPackage, WheelFile, read_lock, write_pylock
from mfimage.errors import OptionError
from mfimage.package.store import Package
from mfimage.run import run_entrypoint
from tests.backends.process_support import PYTHON, Packages, until

pytest_plugins = ["tests.backends.process_fixtures"]
MFIMAGE = str(Path(sys.executable).with_name("mfimage"))
WHERE = """
@json_function
def predict(data: int) -> list[str]:
    from importlib.util import find_spec
    return [sys.prefix, str(find_spec("stranger") is not None), str(find_spec("click") is None)]
"""

DOUBLE = """
@json_function
def predict(data: int) -> int:
    return 2 * data
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def stranger() -> bytes:
    """Return a wheel of a distribution that is not installed here."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("stranger.py", "")
        info = "stranger-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "".join(f"{n},,\n" for n in wheel.namelist()))
    return buffer.getvalue()


def foreign(packages: Packages) -> Package:
    """Write a function whose lock this interpreter does not satisfy."""
    known = packages.environment()
    name, blob = "stranger-1.0-py3-none-any.whl", packages.store.put_bytes(stranger())
    file = WheelFile(name=name, sha256=blob.hex)
    locked = [
        *read_lock(packages.store.read_blob(known.lock)),
        LockedPackage(name="stranger", version="1.0", files=(file,)),
    ]
    lock = write_pylock(locked, Platform(name=known.platform, python=PYTHON))
    environment = dataclasses.replace(
        known, lock=packages.store.put_bytes(lock), wheels={**known.wheels, name: blob}
    )
    return packages.write(WHERE, environment=environment)


@pytest.mark.slow
def test_a_function_that_needs_another_environment_is_called_there(
    process_packages: Packages, temporary: Path
) -> None:
    """It ran with what was installed here, and failed or gave another result."""
    package = foreign(process_packages)
    done = subprocess.run(
        [MFIMAGE, "call", package.reference], input=b"1", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"/environments/" in done.stdout
    assert done.stdout.endswith(b',"True","True"]\n')
    assert done.stderr == (
        b"predict runs in its own environment: stranger 1.0 is locked, and not installed here\n"
    )
    until(lambda: not list(temporary.iterdir()))


def test_a_server_in_another_environment_has_the_lock_of_its_image(
    process_packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    become: dict[str, Any] = {}
    monkeypatch.setattr("mfimage.image.plan.lock.target_lock", lambda *_: b"the image's")
    monkeypatch.setattr(
        "mfimage.backends.process.environments.make_environment",
        lambda name, spec, blobs, lock: become.update(lock=lock) or Path("/env/bin/python"),
    )

    def execve(path: Path, arguments: list[str], environment: dict[str, str]) -> None:
        become.update(arguments=arguments, environment=environment)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("MFIMAGE_FUNCTION", "restored after the test")
    notes: list[str] = []
    with pytest.raises(SystemExit):
        run_entrypoint(foreign(process_packages).reference, ["serve"], notes.append)
    assert become["lock"] == b"the image's"
    assert become["arguments"][0] == "/env/bin/python"
    assert become["arguments"][-1] == "serve"
    assert become["environment"]["PATH"].startswith("/env/bin:")
    assert notes == [
        "predict runs in its own environment: stranger 1.0 is locked, and not installed here"
    ]


@pytest.mark.slow
def test_several_functions_are_served_as_in_their_image(
    process_packages: Packages, tmp_path: Path
) -> None:
    other = Packages(tmp_path / "other").write(DOUBLE, name="double")
    references = [process_packages.write(WHERE).reference, other.reference]
    process = subprocess.Popen(
        [MFIMAGE, "serve", *references, "--port", "0"], stdout=subprocess.PIPE, text=True,
        # Of a platform that this runs on: what is asked for outranks it.
        env={**os.environ, "AIP_HTTP_PORT": "1"},
    )  # fmt: skip
    assert process.stdout
    try:
        url = f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        until(lambda: _get(f"{url}/readyz") is not None)
        names = [each["name"] for each in _get(f"{url}/functions")["functions"]]
        assert names == ["double", "predict"]
        assert _get(f"{url}/double", b"21") == 42
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def _get(url: str, data: bytes | None = None) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError:
        return None


@pytest.mark.slow
def test_several_functions_share_an_environment_of_wheels_in_several_roots(
    process_packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFIMAGE_FUNCTION", "restored after the test")
    monkeypatch.setattr(
        "mfimage.image.plan.lock.target_lock", lambda source, *_: source.read_lock()
    )
    pythons: list[Path] = []

    def execve(path: Path, *_: object) -> None:
        pythons.append(path)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    other = Packages(tmp_path / "other").write(DOUBLE, name="double")
    references = [other.reference, foreign(process_packages).reference]
    notes: list[str] = []
    with pytest.raises(SystemExit):
        run_entrypoint(references, ["serve"], notes.append)
    reason = "stranger 1.0 is locked, and not installed here"
    assert notes == [f"double, predict run in their own environment: {reason}"]
    subprocess.run([pythons[0], "-c", "import stranger, orjson"], check=True)


def test_what_no_image_can_have_is_not_served(process_packages: Packages, tmp_path: Path) -> None:
    one = process_packages.write(WHERE).reference
    two = Packages(tmp_path / "other").write(WHERE.replace("stranger", "other")).reference
    with pytest.raises(OptionError, match="two functions are named predict"):
        run_entrypoint([one, two], ["serve"], print)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_leaves_no_unpacked_package_however_it_ends(
    process_packages: Packages, temporary: Path, number: int
) -> None:
    """It ended without Python's help, and the model stayed in /tmp."""
    source = WHERE + "\ntime.sleep(60)\n"  # still loading: the process ends by os._exit
    package = process_packages.write(source)
    process = subprocess.Popen(
        [MFIMAGE, "serve", package.reference, "--port", "0"], stdout=subprocess.PIPE
    )
    assert process.stdout
    with process.stdout as lines:
        assert b"listening" in lines.readline()
        (folder,) = temporary.glob("mfimage-*")
        assert (folder / "function.json").is_file()
        process.send_signal(number)
        assert process.wait(20) == (0 if number == signal.SIGTERM else -number)
    until(lambda: not list(temporary.iterdir()))
