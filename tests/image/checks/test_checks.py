"""The checks of an image, each against what it has to find; no engine is needed."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mfimage.image.checks import platforms
from mfimage.image.checks.config import check_credentials, check_labels, check_user, read_served
from mfimage.image.checks.contract import (
    check_contract,
    check_functions,
    contract_checks,
    replay,
    replay_as_list,
)
from mfimage.image.checks.report import Check, Failed, Recorder, Report, Skipped
from mfimage.image.checks.restrictions import RESTRICTIONS, check_restrictions
from mfimage.image.checks.runner import ContainerOptions
from mfimage.image.find.info import HistoryEntry, ImageInfo
from mfimage.image.plan.several import functions_subject
from mfimage.image.plan.subject import function_subject
from mfimage.package.spec import Example
from mfimage.runtime.records.run import Tolerance
from mfimage.runtime.serving.served import Served
from tests.image.sample import LOCK, make_sample


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path / "blobs")


# What an image says of itself


@pytest.fixture
def info(sample) -> ImageInfo:
    return ImageInfo(id="x", user="1000:0", labels=sample.plan().labels)


def test_labels_of_a_plan_agree_with_its_function(sample, info):
    assert "agree" in check_labels(info, Served.alone(sample.spec()), LOCK)
    # A renamed image is still the function's.
    renamed = {**info.labels, "org.opencontainers.image.title": "other"}
    assert "agree" in check_labels(replace(info, labels=renamed), Served.alone(sample.spec()), LOCK)


def test_every_label_of_ours_is_required_and_compared(sample, info):
    """All but the version, which says who built it, and what only a lock can tell."""
    ours = [name for name in info.labels if name.startswith("io.mfimage.")]
    assert len(ours) > 8
    for name in ours:
        without = {key: value for key, value in info.labels.items() if key != name}
        with pytest.raises(Failed, match=f"{name}"):
            check_labels(replace(info, labels=without), Served.alone(sample.spec()), LOCK)
        if not name.endswith(".version"):
            other = {**info.labels, name: "other"}
            with pytest.raises(Failed, match=f"the label {name} says other"):
                check_labels(replace(info, labels=other), Served.alone(sample.spec()), LOCK)


def test_the_lock_in_the_image_is_the_labels(sample, info):
    with pytest.raises(Failed, match=r"lock\.digest"):
        check_labels(info, Served.alone(sample.spec()), LOCK + b"\n")
    assert "agree" in check_labels(info, Served.alone(sample.spec()), None)


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("", "as root"),
        ("root", "as root"),
        ("0", "as root"),
        ("00:1000", "as root"),
        ("app", "wants a number"),
        ("1000", None),
        ("1000:0", None),
    ],
)
def test_users(user, said):
    info = ImageInfo(id="x", user=user)
    if said is None:
        assert check_user(info) == user
        return
    with pytest.raises(Failed, match=said):
        check_user(info)


@pytest.mark.parametrize(
    "shown",
    [
        {"env": {"INDEX": "see https://u:hunter2@h/simple"}},
        {"labels": {"a": "postgres://u:hunter2@db/x"}},
        {"history": (HistoryEntry(created_by="RUN pip -i https://u:hunter2@h", size=0),)},
        {"history": (HistoryEntry(created_by="", size=0, comment="http://:hunter2@h"),)},
    ],
)
def test_passwords_are_found_and_not_repeated(shown):
    with pytest.raises(Failed, match="has a password in it") as raised:
        check_credentials(ImageInfo(id="x", **shown))
    assert "hunter2" not in str(raised.value)
    clean = ImageInfo(id="x", env={"INDEX": "https://h:80/@x"}, labels={"mail": "mailto:a:b@c"})
    assert check_credentials(clean)


# A server


@contextmanager
def answering(*answers: tuple[int, str, bytes]) -> Iterator[tuple[str, int]]:
    """Serve one answer after the other, whatever is asked; the last again and again."""
    left = list(answers)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def as_json(value, status=200, kind="application/json"):
    return (status, kind, json.dumps(value).encode())


def spec_with(sample, *outputs):
    examples = tuple(Example(input={"n": n}, output=o) for n, o in enumerate(outputs))
    return replace(sample.spec(), examples=examples)


STRICT = Tolerance()


@pytest.mark.parametrize(
    ("answer", "tolerance", "said"),
    [
        (as_json({"x": 0.5}), STRICT, None),
        (as_json({"x": 0.5 + 1e-9}), STRICT, None),
        (as_json({"x": 0.51}), STRICT, r"example 0: result\[\"x\"\]: expected 0.5, got 0.51"),
        (as_json({"x": 0.51}), Tolerance(relative=0.05), None),
        (as_json({"x": 0.51}), Tolerance(absolute=0.02), None),
        (as_json({"x": 0.5, "y": 1}), STRICT, "not recorded"),
        (as_json({"detail": "no model"}, 500), STRICT, "answered 500: no model"),
        ((502, "text/html", b"<h1>Bad"), STRICT, "answered 502: b'<h1>Bad'"),
        ((200, "application/json", b"{"), STRICT, "is not JSON"),
    ],
)
def test_results_are_compared_with_the_examples(sample, answer, tolerance, said):
    spec = spec_with(sample, {"x": 0.5})
    with answering(answer) as address:
        if said is None:
            assert replay(address, spec, tolerance) == "1 example"
            return
        with pytest.raises(Failed, match=said):
            replay(address, spec, tolerance)


def test_a_list_is_compared_item_by_item(sample):
    spec = spec_with(sample, 1, 2.0)
    good = [{"result": 1}, {"result": 2.0}]
    with answering(as_json(good)) as address:
        assert replay_as_list(address, spec, STRICT) == "2 examples"
    for answer, said in (
        (good[:1], "item by item"),
        ({}, "item by item"),
        ([good[0], {"error": {"status": 422}}], r"example 1: item\[\"result\"\]: missing"),
        ([good[1], good[0]], "expected 1, got 2.0"),
    ):
        with answering(as_json(answer)) as address, pytest.raises(Failed, match=said):
            replay_as_list(address, spec, STRICT)


def test_without_examples_it_says_how_to_have_some(sample):
    with answering(as_json({})) as address, pytest.raises(Skipped, match="--example RECORD"):
        replay(address, sample.spec(), STRICT)


PROBLEM = "application/problem+json"
GOOD_OPENAPI = {
    "openapi": "3.1.0",
    "paths": {
        "/predict": {"post": {"$ref": "#/components/a~1b"}},
        "/predict/batch": {"post": {}},
    },
    "components": {"a/b": {}},
}


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("healthz", as_json({}, 503), "expected 200"),
        ("healthz", (200, "text/html", b""), "as 'text/html'"),
        ("metrics", (200, "text/plain; version=1", b"mfimage_x 1\n"), None),
        ("metrics", (200, "text/plain", b"python_info 1\n"), "starts with mfimage_"),
        ("unknown-path", as_json({"status": 404}, 404, PROBLEM), None),
        ("unknown-path", as_json({"detail": "Not Found"}, 404), "expected application/problem"),
        ("unknown-path", as_json({"detail": "x"}, 404, PROBLEM), "does not have status 404"),
        ("malformed-body", as_json({"status": 400}, 400, PROBLEM), "expected 422"),
        ("content-type", as_json({"result": 1}), "expected 415"),
        ("openapi", as_json(GOOD_OPENAPI), None),
        ("openapi", as_json({**GOOD_OPENAPI, "openapi": "2.0"}), "OpenAPI 3"),
        ("openapi", as_json({**GOOD_OPENAPI, "components": {}}), "#/components/a~1b leads nowhere"),
        ("openapi", as_json({"openapi": "3.1.0", "paths": {}}), "POST /predict is missing"),
        ("identity", as_json({"name": "predict", "digest": "sha256:0"}), "its digest is sha256"),
        ("identity", as_json([]), "its name is predict"),
    ],
)
def test_the_contract_s_checks_find_what_is_wrong(sample, name, answer, said):
    (check,) = (each for each in contract_checks(Served.alone(sample.spec())) if each.name == name)
    recorder = Recorder()
    with answering(answer) as address:
        recorder.run(name, lambda: check.run(address, Served.alone(sample.spec())))
    (found,) = recorder.checks
    assert found.status == ("passed" if said is None else "failed")
    assert said is None or said in found.detail


def test_a_server_that_says_nothing_is_no_crash(sample):
    recorder = Recorder()
    check, *_ = contract_checks(Served.alone(sample.spec()))
    served = Served.alone(sample.spec())
    assert not recorder.run("identity", lambda: check.run(("127.0.0.1", 1), served))
    assert recorder.checks[0].detail.startswith("no answer: ")


def test_each_of_several_functions_has_a_line(sample):
    specs = {name: replace(spec_with(sample, 1), name=name) for name in ("a", "b/emea")}
    served = Served.together(specs.values())
    own = [each for each in contract_checks(served) if each.function == "b/emea"]
    assert {each.path for each in own} <= {"/b/emea", "/b/emea/batch"}
    recorder = Recorder()
    with answering(as_json([{"result": 1}])) as address:
        assert not check_functions(recorder, address, served, STRICT)
        check_contract(recorder, address, served)
    names = [each.name for each in recorder.checks]
    assert names[:2] == ["a", "b/emea"]
    assert len(names) == len(set(names))
    assert "POST /b/emea answers 200" in recorder.checks[1].detail


def test_platforms_call_one_of_several_functions(sample, monkeypatch):
    """Most have requests that name no function: without a default, these were answered 404."""
    specs = [replace(sample.spec(), name="a"), replace(spec_with(sample, 1), name="b")]
    started, recorder = [], Recorder()

    class Runner:
        info = ImageInfo(id="x", env={})

        @contextmanager
        def start(self, options):
            started.append(options.env)
            yield None

    monkeypatch.setattr(platforms, "wait_until_ready", lambda *_: ("127.0.0.1", 1))
    platforms.check_platform(
        Runner(), Served.together(specs), recorder, "mlflow", timeout=1, tolerance=STRICT
    )
    assert [env["MFIMAGE_DEFAULT_FUNCTION"] for env in started] == ["b"]
    names = [each.name for each in recorder.checks]
    assert "mlflow-ping" in names
    assert len(names) == len(set(names))


class _Files:
    """An image of these files."""

    info = ImageInfo(id="x", env={"MFIMAGE_DEFAULT_FUNCTION": "a"})

    def __init__(self, files):
        self._files = {f"/opt/function/{name}": data for name, data in files.items()}

    def read(self, path):
        return self._files.get(path)

    def files(self, folder):
        own = {name.removeprefix(f"{folder}/"): data for name, data in self._files.items()}
        return {name: data for name, data in own.items() if not name.startswith("/")}


def test_the_functions_of_an_image_are_read(sample):
    specs = {name: replace(sample.spec(), name=name) for name in ("a", "b/emea")}
    files = dict(functions_subject(specs, sample.spec().environment).files)
    found = read_served(_Files(files))
    assert (found.several, found.default) == (True, "a")
    assert {name: spec.digest for name, spec in found.specs.items()} == {
        name: spec.digest for name, spec in specs.items()
    }
    alone = read_served(_Files(function_subject(sample.spec()).files))
    assert not alone.several
    del files["functions/b/emea/function.json"]
    with pytest.raises(Failed, match="names b/emea, and there is no functions/b/emea"):
        read_served(_Files(files))
    with pytest.raises(Failed, match="cannot be read"):
        read_served(_Files({"functions.json": b"{}"}))


# Restrictions


@pytest.mark.parametrize("needs", [*RESTRICTIONS])
def test_the_restriction_that_hurts_is_named(needs):
    changes, _ = RESTRICTIONS[needs]
    launches = []

    def attempt(launch):
        launches.append(launch)
        if replace(launch, **changes) == launch:
            raise Failed("it hurts")

    recorder = Recorder()
    check_restrictions(recorder, ContainerOptions(port=1), attempt)
    status = {check.name: check.status for check in recorder.checks}
    assert status == {name: "failed" if name == needs else "passed" for name in RESTRICTIONS}
    assert launches[0].read_only and launches[0].user and launches[0].no_capabilities


def test_what_hurts_only_together_is_found():
    def attempt(launch):
        if launch.read_only and launch.user:
            raise Failed("it hurts")

    recorder = Recorder()
    check_restrictions(recorder, ContainerOptions(), attempt)
    assert [check.name for check in recorder.checks if check.status == "failed"] == ["restricted"]


def test_what_works_with_all_of_them_is_started_once():
    launches = []
    recorder = Recorder()
    check_restrictions(recorder, ContainerOptions(), launches.append)
    assert len(launches) == 1
    assert [check.status for check in recorder.checks] == ["passed"] * len(RESTRICTIONS)


# A report


def test_a_report_reads_as_a_table():
    checks = (
        Check(name="ready", status="passed", detail="yes", seconds=1.24),
        Check(name="examples", status="failed", detail="no; its log:\nboom", seconds=0),
        Check(name="list", status="skipped", detail="none"),
    )
    report = Report(image="i:1", id="sha256:0", runner="docker", checks=checks)
    assert report.to_text().splitlines() == [
        "ready     passed   1.2 s  yes",
        "examples  failed   0.0 s  no; its log:",
        "list      skipped  0.0 s  none",
    ]
    assert report.summary == "1 passed, 1 failed, 1 skipped"
    assert report.to_dict()["status"] == "failed"
    assert "boom" in json.dumps(report.to_dict())
