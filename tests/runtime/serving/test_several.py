"""Several functions of one image, in real servers."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.runtime.loading.modules import share
from tests.runtime.packages import Source, make_functions
from tests.runtime.servers import Server, running, until

pytestmark = pytest.mark.slow

NAP = """
@json_function
def predict(data: float) -> float:
    time.sleep(data)
    return data
"""
# One module name, other content: two of these cannot be in one process.
WORD = """
WORD = {word!r}

@json_function(batch=True)
def predict(data: list[int]) -> list[list]:
    if 13 in data:
        raise RuntimeError("13 of " + WORD)
    return [[WORD, each, __import__("model").WORD, os.getpid()] for each in data]
"""
BROKEN = "raise RuntimeError('broken at import')\n"


def functions(server: Server) -> dict[str, str]:
    return {each["name"]: each["state"] for each in server.get("/functions").json()["functions"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of one code and two whose modules have one name, one of which naps, too."""
    segments = {
        name: Source(source=NAP.replace("return data", f"return data * {n}"), module=f"s{name}")
        for n, name in enumerate(("emea", "apac"), 1)
    }
    words = {word: Source(source=WORD.format(word=word), module="model") for word in ("one", "two")}
    return make_functions(tmp_path_factory.mktemp("several"), {**segments, **words})


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(folder, MFIMAGE_DEFAULT_FUNCTION="apac", MFIMAGE_THREADS="1") as server:
        yield server.until_ready()


def test_each_is_called_by_its_name(server: Server) -> None:
    assert server.post("/emea", 0.0).json() == 0.0
    assert server.post("/apac", 0.01).json() == 0.02
    assert server.post("/apac/batch", [0.0, "x"]).json()[0] == {"result": 0.0}
    listed = server.get("/functions").json()
    assert listed["default"] == "apac"
    assert [each["name"] for each in listed["functions"]] == ["apac", "emea", "one", "two"]
    assert {each["state"] for each in listed["functions"]} == {"loaded"}
    assert all(each["digest"].startswith("sha256:") for each in listed["functions"])
    unknown = server.post("/forecast", 0.0)
    assert unknown.status_code == 404
    assert "apac, emea, one, two" in unknown.json()["detail"]
    assert server.get("/").json()["functions"] == 4


def test_one_document_describes_all(server: Server) -> None:
    document = server.get("/openapi.json").json()
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert {"/emea", "/emea/batch", "/two", "/two/batch"} <= posts
    ids = [each["operationId"] for methods in document["paths"].values() for each in
           methods.values()]  # fmt: skip
    assert len(ids) == len(set(ids))
    schema = document["paths"]["/two"]["post"]["requestBody"]["content"]["application/json"]
    assert schema["schema"]["$ref"] == "#/components/schemas/two.Record"
    assert document["components"]["schemas"]["two.Record"]["type"] == "integer"


def test_modules_of_one_name_stay_apart(server: Server) -> None:
    (one, two) = (server.post(f"/{name}", 1).json() for name in ("one", "two"))
    assert (one[:3], two[:3]) == (["one", 1, "one"], ["two", 1, "two"])
    assert one[3] != two[3], "each in a process of its own"
    assert server.process.pid in (one[3], two[3])
    for name in ("one", "two"):
        answers = server.post(f"/{name}/batch", [1, "x", 2]).json()
        assert [each.get("result", [0])[:2] for each in answers] == [[name, 1], [0], [name, 2]]
        assert "expected int" in json.dumps(answers[1])
        failed = server.post(f"/{name}", 13, headers={"X-Request-Id": f"bad-{name}"})
        assert (failed.status_code, failed.headers["x-request-id"]) == (500, f"bad-{name}")
        assert failed.json()["request_id"] == f"bad-{name}"
        until(lambda name=name: any(f"13 of {name}" in json.dumps(each) for each in server.log))
        assert server.post(f"/{name}", "x").status_code == 422
    text = server.get("/metrics").text
    assert 'mfimage_requests_total{endpoint="record",function="two",status="500"} 1.0' in text
    assert 'mfimage_batch_size_count{function="two"}' in text
    assert "mfimage_workers_ready 1.0" in text


def test_a_slow_function_starves_no_other(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(server.post, "/emea", 0.6) for _ in range(6)]
        until(lambda: any(each.done() for each in slow))
        assert server.post("/apac", 0.0).json() == 0.0
        assert server.post("/two", 5).json()[1] == 5
        assert not all(each.done() for each in slow)
        assert [each.result().json() for each in slow] == [0.6] * 6


def test_a_crash_of_functions_apart_ends_the_server(folder: Path) -> None:
    with running(folder) as server:
        server.until_ready()
        found = {server.post(f"/{name}", 1).json()[3] for name in ("one", "two")}
        (apart,) = found - {server.process.pid}
        os.kill(apart, signal.SIGKILL)
        assert server.wait() == 1
        assert "has ended" in json.dumps(server.messages("error"))


def test_a_function_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    good = Source(source=NAP, module="good")
    made = make_functions(tmp_path / "fn", {"good": good, "bad": Source(source=NAP, module="bad")})
    (code,) = made.glob("code/*/bad.py")
    code.write_text(code.read_text() + BROKEN)
    with running(made) as server:
        until(lambda: functions(server) == {"bad": "failed", "good": "loaded"})
        ready = server.get("/readyz")
        assert ready.status_code == 503
        assert "bad cannot be loaded" in ready.json()["detail"]
        assert "broken at import" in ready.json()["detail"]
        assert server.post("/good", 0.0).json() == 0.0
        refused = server.post("/bad", 0.0)
        assert refused.status_code == 503
        assert "broken at import" in refused.json()["detail"]
        server.signal()
        assert server.wait() == 0


def threads(server: Server) -> int:
    return len([*Path(f"/proc/{server.process.pid}/task").iterdir()])


def test_on_demand_each_is_loaded_once_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    source = f"""
print("imported", flush=True)
while not os.path.exists({str(gate)!r}): time.sleep(0.01)
{NAP}"""
    gate.touch()
    sources = {f"f{n}": Source(source=source, module=f"m{n}") for n in range(4)}
    made = make_functions(tmp_path / "fn", sources)
    gate.unlink()
    with running(made, MFIMAGE_LOAD="lazy", MFIMAGE_MAX_LOADED="2") as server:
        server.until_ready()
        assert {*functions(server).values()} == {"unloaded"}
        assert server.printed == []
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            first = [pool.submit(server.post, "/f0", 0.0) for _ in range(6)]
            until(lambda: functions(server)["f0"] == "loading")
            assert server.get("/healthz").status_code == 200
            gate.touch()
            assert [each.result().json() for each in first] == [0.0] * 6
            assert len(server.printed) == 1
            busy = pool.submit(server.post, "/f0", 1.0)
            until(lambda: 'in_flight{function="f0"} 1.0' in server.get("/metrics").text)
            assert [server.post(f"/f{n}", 0.0).json() for n in (1, 2)] == [0.0, 0.0]
            assert functions(server) == {
                "f0": "loaded", "f1": "unloaded", "f2": "loaded", "f3": "unloaded"
            }, "f0 was used least recently, but is in use"  # fmt: skip
            assert busy.result().json() == 1.0
        assert server.post("/f1", 0.0).json() == 0.0, "what was dropped is loaded again"
        assert [name for name, state in functions(server).items() if state == "loaded"] == [
            "f0", "f1"
        ], "f2 was used least recently"  # fmt: skip
        assert threads(server) < 12
        server.signal()
        assert server.wait() == 0


def test_memory_limits_what_is_loaded(tmp_path: Path) -> None:
    source = NAP.replace("data: float", "data: float, params: FunctionParameters")
    sources = {
        f"f{n}": Source(source=source, module="same", artifacts={"a": os.urandom(4_000_000)})
        for n in range(5)
    }
    made = make_functions(tmp_path / "fn", sources)
    with running(made, MFIMAGE_LOAD="lazy", MFIMAGE_MAX_LOADED="20MB") as server:
        server.until_ready()
        for _ in range(2):
            for name in sources:
                assert server.post(f"/{name}", 0.0).json() == 0.0
        loaded = [name for name, state in functions(server).items() if state == "loaded"]
        assert 1 <= len(loaded) <= 4
        assert "f4" in loaded


def test_code_that_shares_a_process(tmp_path: Path) -> None:
    def code(name: str, **files: str) -> Path:
        for file, text in files.items():
            path = tmp_path / name / f"{file.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    a, b = code("a", model="1", shared="x"), code("b", other="1", shared="x")
    c, d = code("c", model="2"), code("d", httpx="1")
    e = code("e", tests__one="1")
    assert share([a, b, c, d, e]) == [[a, b, e], [c], [d]]
