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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfimage.backends.ray.backend import RayBackend
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


def test_map_is_lazy_ordered_and_batched(run_ray: Start) -> None:
    predict = run_ray(BATCH, batch=True)
    read: list[int] = []

    def source() -> Any:
        for i in range(100_000):
            read.append(i)
            yield i % 200

    results = predict.map(source(), batch_size=256, on_error="raise", max_in_flight=4)
    assert not read
    assert [next(results) for _ in range(300)] == [i % 200 + 256_000 for i in range(300)]
    assert len(read) <= 256 * 6
    results.close()
    assert predict(7) == 1007
    found = list(predict.map(range(100), batch_size=8, on_error="raise"))
    assert found == [i + (8_000 if i < 96 else 4_000) for i in range(100)]
    odd = [{1} if i % 9 == 5 else i for i in range(100)]
    mixed = list(predict.map(odd, batch_size=8, on_error="return"))
    assert [type(each) is int for each in mixed] == [type(each) is int for each in odd]


def test_what_the_function_raises(run_ray: Start) -> None:
    predict = run_ray(ECHO)
    with pytest.raises(ValueError, match="boom") as caught:
        predict("boom")
    assert caught.value.args == ("boom", 3)
    assert 'raise ValueError("boom", 3)' in str(caught.value.__cause__)
    found = list(predict.map([1, "boom", {2}, 3], batch_size=9, on_error="return"))
    assert [type(each) for each in found] == [int, ValueError, InputError, int]


def test_references(run_ray: Start) -> None:
    import ray

    predict = run_ray(ECHO)
    first = predict.remote({"a": [1]})
    assert ray.get(predict.remote(first)) == {"a": [1]}
    with pytest.raises(ValueError, match="boom"):
        ray.get(predict.remote("boom"))


@pytest.mark.parametrize("batch", [False, True])
def test_poison_fails_alone(batch: bool, run_ray: Start) -> None:
    predict = run_ray(BATCH, batch=True) if batch else run_ray(ECHO)
    records: list[Any] = list(range(600))
    if not batch:
        records[300] = "die"
    found = list(predict.map(records, batch_size=64, on_error="return"))
    (place,) = [place for place, each in enumerate(found) if isinstance(each, Exception)]
    assert place == 300
    assert isinstance(found[300], BackendError)
    assert "its actor died" in str(found[300])
    good = [each % 1000 if batch else each for each in found if not isinstance(each, Exception)]
    assert good == [i for i in range(600) if i != 300]


def test_never_tried_again(run_ray: Start) -> None:
    predict = run_ray(ECHO, max_retries=0)
    began = time.monotonic()
    with pytest.raises(BackendError, match="its actor died while it ran"):
        predict("die")
    assert predict(1) == 1
    assert time.monotonic() - began < 30


def test_killed_in_the_middle(run_ray: Start) -> None:
    predict = run_ray(ECHO)
    pid = predict("who")[0]
    found = []
    for result in predict.map(range(50_000), batch_size=256, on_error="raise"):
        found.append(result)
        if result == 10_000:
            os.kill(pid, signal.SIGKILL)
    assert found == list(range(50_000))
    assert predict("who")[0] != pid


def test_more_actors_when_there_is_more_to_do(run_ray: Start) -> None:
    predict = run_ray(SLOW, num_cpus=0.5, max_actors=3)
    futures = [predict.submit(0.2) for _ in range(80)]
    assert len({future.result() for future in futures}) == 3


@pytest.mark.parametrize("kind", ["nobody", "no head", "silent"])
def test_dead_addresses(kind: str) -> None:
    """In processes of their own: this one has joined a cluster."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if kind != "nobody":
            server.listen()
        code = (
            "from mfimage.backends.ray.cluster import join\n"
            "from mfimage.errors import BackendError\n"
            "import sys, time\n"
            "import ray\n"
            "began = time.monotonic()\n"
            "try:\n    join(sys.argv[1])\n"
            "except BackendError as error:\n    print(error, time.monotonic() - began)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True
        )
        if kind == "no head":
            peer, _ = server.accept()
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        output, _ = process.communicate(timeout=60)
        if kind == "no head":
            peer.close()
    assert f"no Ray cluster answers at {address}" in output
    assert float(output.split()[-1]) < 5


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"num_gpus": 2}, "1 CPU, 2 GPU requested"),
        ({"memory": "64TiB"}, "1 CPU, 6.55e\\+04 GiB memory requested"),
        ({"min_actors": 9, "max_actors": 9}, "9 actors with 1 CPU each requested"),
        ({"placement": "image"}, "1 CPU, 0.001 mfimage-[0-9a-f]{16} requested"),
    ],
)
def test_what_is_not_there(options: dict[str, Any], asked: str, run_ray: Start) -> None:
    began = time.monotonic()
    with pytest.raises(BackendError, match=asked) as caught:
        run_ray(ECHO, **options)
    assert "one node with 2 CPU" in str(caught.value)
    assert time.monotonic() - began < 10


def test_nothing_is_left(run_ray: Start, ray_cluster: Any) -> None:
    """A connection that was there stays; the actor goes."""
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


def test_what_a_function_prints_last_has_time_to_arrive(
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
