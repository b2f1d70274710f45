"""The Ray backend on a real cluster: what it gives, what goes wrong, what is left behind."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.ray.backend import RayBackend
from mfimage.backends.ray.options import RayOptions
from mfimage.errors import BackendError, InputError, OptionError
from mfimage.load import function_from_json
from mfimage.package.archive import unpack
from mfimage.runtime.layout import placement_resource
from tests.backends import process_support
from tests.backends.process_support import Packages, is_running
from tests.support.ray import add_node, marks, until

pytest_plugins = ["tests.backends.ray_fixtures"]
pytestmark = marks()
Start = Callable[..., RayBackend]

ECHO = """
@json_function
def predict(data: object) -> object:
    if data == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == "boom":
        raise ValueError("boom", 3)
    if data == "who":
        return [os.getpid(), sys.executable, __file__]
    return data
""".replace("object", "Any").replace("@json", "from typing import Any\n@json", 1)
BATCH = """
@json_function(batch=True)
def predict(data: list[int]) -> list[int]:
    if 300 in data:
        os.kill(os.getpid(), signal.SIGKILL)
    return [each + len(data) * 1000 for each in data]
"""
SLOW = """
@json_function
def predict(data: float) -> int:
    time.sleep(data)
    return os.getpid()
"""


class TestRunning:
    """Functions that run in an actor each, shared by these tests."""

    @pytest.fixture(scope="class")
    def running(self, ray_cluster: Any, ray_root: Path) -> Iterator[Callable[[str], RayBackend]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mfimage.backends.ray.cluster._LAST_LINES_SECONDS", 0)
            packages = Packages(ray_root / "root")
            options = RayOptions(address=ray_cluster.address, max_actors=1)
            started = {
                source: RayBackend(packages.write(source, batch=source == BATCH), options)
                for source in (ECHO, BATCH)
            }
            yield started.__getitem__
            for backend in started.values():
                backend.close()

    @pytest.fixture
    def echo(self, running: Callable[[str], RayBackend]) -> RayBackend:
        return running(ECHO)

    @pytest.fixture
    def batch(self, running: Callable[[str], RayBackend]) -> RayBackend:
        return running(BATCH)

    def test_map_is_lazy_ordered_and_batched(self, batch: RayBackend) -> None:
        read: list[int] = []

        def source() -> Any:
            for i in range(100_000):
                read.append(i)
                yield i % 200

        results = batch.map(source(), batch_size=256, on_error="raise", max_in_flight=4)
        assert not read
        assert [next(results) for _ in range(300)] == [i % 200 + 256_000 for i in range(300)]
        assert len(read) <= 256 * 6
        results.close()
        assert batch(7) == 1007
        found = list(batch.map(range(100), batch_size=8, on_error="raise"))
        assert found == [i + (8_000 if i < 96 else 4_000) for i in range(100)]
        odd = [{1} if i % 9 == 5 else i for i in range(100)]
        mixed = list(batch.map(odd, batch_size=8, on_error="return"))
        assert [type(each) is int for each in mixed] == [type(each) is int for each in odd]

    def test_exceptions_of_the_function(self, echo: RayBackend) -> None:
        with pytest.raises(ValueError, match="boom") as caught:
            echo("boom")
        assert caught.value.args == ("boom", 3)
        assert 'raise ValueError("boom", 3)' in str(caught.value.__cause__)
        found = list(echo.map([1, "boom", {2}, 3], batch_size=9, on_error="return"))
        assert [type(each) for each in found] == [int, ValueError, InputError, int]

    def test_references(self, echo: RayBackend) -> None:
        import ray

        first = echo.remote({"a": [1]})
        assert ray.get(echo.remote(first)) == {"a": [1]}
        with pytest.raises(ValueError, match="boom"):
            ray.get(echo.remote("boom"))

    @pytest.mark.parametrize("source", [ECHO, BATCH], ids=["echo", "batch"])
    def test_record_that_kills_its_actor_fails_alone(
        self, source: str, running: Callable[[str], RayBackend]
    ) -> None:
        records: list[Any] = list(range(600))
        if source == ECHO:
            records[300] = "die"
        found = list(running(source).map(records, batch_size=64, on_error="return"))
        (place,) = [place for place, each in enumerate(found) if isinstance(each, Exception)]
        assert place == 300
        assert isinstance(found[300], BackendError)
        assert "its actor died" in str(found[300])
        good = [each for each in found if not isinstance(each, Exception)]
        # The batch function adds the size of its batch.
        assert [each % 1000 for each in good] == [i for i in range(600) if i != 300]

    def test_actor_killed_during_a_map(self, echo: RayBackend) -> None:
        pid = echo("who")[0]
        found = []
        for result in echo.map(range(50_000), batch_size=256, on_error="raise"):
            found.append(result)
            if result == 10_000:
                os.kill(pid, signal.SIGKILL)
        assert found == list(range(50_000))
        assert echo("who")[0] != pid


def test_no_retries(run_ray: Start) -> None:
    predict = run_ray(ECHO, max_retries=0)
    with pytest.raises(BackendError, match="its actor died while it ran"):
        predict("die")
    assert predict(1) == 1


def test_more_actors_when_there_is_more_to_do(run_ray: Start) -> None:
    predict = run_ray(SLOW, num_cpus=0.5, max_actors=3)
    seen: set[int] = set()

    def all_work() -> bool:
        seen.update(future.result() for future in [predict.submit(0.05) for _ in range(24)])
        return len(seen) == 3

    until(all_work, 90)


JOIN = """
import sys, time
import ray
from mfimage.backends.ray.cluster import join
from mfimage.errors import BackendError
for address in sys.argv[1:]:
    began = time.monotonic()
    try:
        join(address)
    except BackendError as error:
        print(time.monotonic() - began, error)
"""


def test_addresses_without_a_cluster() -> None:
    """In another process: this one has joined a cluster."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.socket()) for _ in range(3)]
        for server in servers:
            server.bind(("127.0.0.1", 0))
        _, http, silent = servers  # nothing listens at the first
        http.listen()
        silent.listen()
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", JOIN, *addresses], stdout=subprocess.PIPE, text=True
            )
        )
        peer, _ = http.accept()
        stack.enter_context(peer)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        output, _ = process.communicate(timeout=60)
    for line, address in zip(output.splitlines(), addresses, strict=True):
        seconds, _, message = line.partition(" ")
        assert f"no Ray cluster responds at {address}" in message
        assert float(seconds) < 5


@pytest.mark.parametrize(
    ("options", "requested"),
    [
        ({"num_gpus": 2}, "1 CPU, 2 GPU requested"),
        ({"memory": "64TiB"}, "1 CPU, 6.55e\\+04 GiB memory requested"),
        ({"min_actors": 9, "max_actors": 9}, "9 actors with 1 CPU each requested"),
        ({"placement": "image"}, "1 CPU, 0.001 mfimage-[0-9a-f]{16} requested"),
    ],
)
def test_missing_resources(
    options: dict[str, Any], requested: str, run_ray: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfimage.backends.ray.cluster._SETTLE_SECONDS", 0)
    with pytest.raises(BackendError, match=requested) as caught:
        run_ray(ECHO, **options)
    assert "one node with 2 CPU" in str(caught.value)


def test_close_keeps_an_existing_connection(run_ray: Start, ray_cluster: Any) -> None:
    import ray

    ray.init(address=ray_cluster.address)
    try:
        predict = run_ray(ECHO, num_cpus=2)
        pid = predict("who")[0]
        predict.close()
        until(lambda: not is_running(pid))
        until(lambda: ray.available_resources().get("CPU") == 2)
        with pytest.raises(BackendError, match="was closed"):
            predict(1)
        with pytest.raises(OptionError, match="has joined the Ray cluster at"):
            run_ray(ECHO, address="192.0.2.1:6379")
    finally:
        ray.shutdown()


def wheel(name: str) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel that is installed nowhere."""
    buffer = io.BytesIO()
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(buffer, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return f"{name}-1.0-py3-none-any.whl", buffer.getvalue()


def test_another_environment(
    run_ray: Start, ray_packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is locked is not what the node has, so the function gets an interpreter of its own."""
    file, data = wheel("installed_nowhere")
    plain = process_support.repack
    monkeypatch.setattr(
        process_support, "repack", lambda n: (file, data) if n == "installed-nowhere" else plain(n)
    )
    monkeypatch.setattr(importlib.metadata, "version", _version)
    package = ray_packages.write(
        ECHO.replace("import Any", "import Any\nimport installed_nowhere"),
        environment=ray_packages.environment("installed-nowhere"),
    )
    predict = run_ray(package)
    _, python, _ = predict("who")
    assert "/environments/" in python
    found = list(predict.map([1, "die", 2], batch_size=8, on_error="return"))
    assert (found[0], found[2]) == (1, 2)
    assert "its worker was killed by SIGKILL" in str(found[1])


def _version(name: str, plain: Any = importlib.metadata.version) -> str:
    return "1.0" if name == "installed-nowhere" else str(plain(name))


def test_nodes_that_cannot_read_the_root(
    run_ray: Start, ray_packages: Packages, ray_root: Path
) -> None:
    package = ray_packages.write(
        "@json_function\ndef predict(data: int, params: FunctionParameters) -> list:\n"
        "    return [data + params.more, __file__]\n",
        artifacts={"more": 3},
    )
    away = "/nowhere/" + "/".join(package.reference.split("/")[-4:])
    predict = run_ray(dataclasses.replace(package, reference=away))
    value, _ = predict(4)
    assert value == 7
    digest = package.spec.digest.removeprefix("sha256:")
    assert (ray_root / "cache" / "ray" / "packages" / digest / "functions").is_dir()


def test_placement(
    run_ray: Start, ray_packages: Packages, ray_cluster: Any, tmp_path: Path
) -> None:
    package = ray_packages.write(ECHO)
    unpack(package.spec, package.store, tmp_path)
    node = add_node(
        ray_cluster,
        environment={"MFIMAGE_FUNCTION": str(tmp_path)},
        **{placement_resource(package.spec.digest): 1},
    )
    try:
        predict = run_ray(package, placement="image")
        assert predict("who")[2] == str(tmp_path / "code" / "served.py")
    finally:
        ray_cluster.remove_node(node)


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from mfimage.load import function_from_json
print("imported", file=open(sys.argv[3], "a"))
fn = function_from_json(sys.argv[1], backend="ray", address=sys.argv[2], max_actors=1)
print([fn(record) for record in [1, 2]], list(fn.map([3, 4])))
sys.stdin.read()
"""


def test_unguarded_script(ray_cluster: Any, ray_packages: Packages, tmp_path: Path) -> None:
    source = (
        '@json_function\ndef predict(data: int) -> int:\n    print("seen", data)\n    return data'
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    reference, stderr = ray_packages.write(source).reference, tmp_path / "stderr"
    with stderr.open("w") as output, subprocess.Popen(
        [sys.executable, "script.py", reference, ray_cluster.address, "count"], cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"},
    ) as script:  # fmt: skip
        until(lambda: "seen 1" in stderr.read_text() or script.poll() is not None, 90)
        stdout, _ = script.communicate(timeout=60)
    assert "seen 1" in stderr.read_text()
    assert (script.returncode, stdout) == (0, "[1, 2] [3, 4]\n")
    assert (tmp_path / "count").read_text() == "imported\n"


def test_leaving_waits_for_the_last_output(
    ray_cluster: Any, ray_packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    left: list[float] = []
    shutdown = ray.shutdown
    monkeypatch.setattr(ray, "shutdown", lambda: (left.append(time.monotonic()), shutdown()))
    reference = ray_packages.write(ECHO).reference
    with function_from_json(reference, backend="ray", address=ray_cluster.address) as fn:
        fn(1)
        answered = time.monotonic()
    assert left[0] - answered >= 0.5


def test_options(ray_cluster: Any, ray_packages: Packages) -> None:
    reference = ray_packages.write(ECHO).reference
    with pytest.raises(OptionError, match="backend 'process' does not take num_cpus="):
        function_from_json(reference, backend="process", num_cpus=1)
    with pytest.raises(OptionError, match="cpus: there is no such option"):
        function_from_json(reference, backend="ray", cpus=1)
    with pytest.raises(OptionError, match="no workers="):
        function_from_json(reference, backend="ray", workers=1)
    with pytest.raises(OptionError, match="max_actors: expected at least min_actors=2, got 1"):
        function_from_json(reference, backend="ray", min_actors=2, max_actors=1)
    with pytest.raises(OptionError, match="memory: 'much' is not a size"):
        function_from_json(reference, backend="ray", memory="much")
    address = ray_cluster.address
    with function_from_json(reference, backend="ray", address=address, max_actors=1) as fn:
        assert fn(1) == 1
        with pickle.loads(pickle.dumps(fn)) as again:
            assert again("who")[0] not in (os.getpid(), fn("who")[0])
