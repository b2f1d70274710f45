"""``mfimage test``: a good image passes, and each fault of a bad one is found by its check."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from mfimage.cli.images import CONTRACTS
from mfimage.image.checks.platforms import PLATFORMS
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine
from tests.e2e.conftest import Project
from tests.support import docker as support
from tests.support.docker import free_port

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.index]
DOUBLE = '''
from metaflow import json_function

@json_function
def double(data: dict[str, float]) -> dict[str, float]:
    """Double every value."""
    return {name: 2 * value for name, value in data.items()}
'''
PROBLEMS = "/opt/mfimage/mfimage/runtime/serving/problems.py"
NAME = "mfimage-test-double"
GOOD = f"{NAME}:good"
RESTRICTED = {"read-only", "any-user", "no-capabilities", "no-new-privileges"}
NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


@pytest.fixture(scope="module")
def good(iris: Project, base_image: str, images: list[str]) -> str:
    """A function that needs nothing, with two examples, as an image."""
    (iris.folder / "double.py").write_text(DOUBLE)
    examples = ["--example", '{"a": 0.1}', "--example", '{"b": 3, "c": -1e300}']
    reference = iris.bind("double.py:double", *examples)
    iris.mfimage("build", reference, "-t", GOOD)
    images.append(GOOD)
    return GOOD


@pytest.fixture
def spoiled(good: str, images: list[str], tmp_path: Path):
    """Makes an image of the good one by further lines of a Dockerfile."""

    def spoil(name: str, *lines: str) -> str:
        tag = f"{NAME}:{name}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "Dockerfile").write_text("\n".join((f"FROM {good}", *lines, "")))
        DockerCommand.find().build(folder, tags=[tag])
        images.append(tag)
        return tag

    return spoil


def edited(path: str, old: str, new: str) -> str:
    """A line that changes a file of the image, or fails."""
    code = f"t = open({path!r}).read(); assert {old!r} in t; "
    code += f"open({path!r}, 'w').write(t.replace({old!r}, {new!r})); "
    # What is compiled is not compared with its source.
    code += f"import os, importlib.util as u; c = u.cache_from_source({path!r}); "
    code += "os.path.exists(c) and os.remove(c)"
    return "USER 0:0\nRUN " + json.dumps(["python", "-c", code]) + "\nUSER 1000:0"


def check(
    project: Project, image: str, *options: str, env: Mapping[str, str] = MappingProxyType({})
):
    """Test an image; return the checks by name and what stderr says."""
    done = project.mfimage("test", image, "--json", *options, check=False, env=env)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert len(checks) == len(report["checks"])
    failed = {name for name, check in checks.items() if check["status"] == "failed"}
    assert done.returncode == bool(failed)
    assert report["status"] == ("failed" if failed else "passed")
    return checks, failed, done.stderr


def test_a_good_image_passes(iris, good):
    done = iris.mfimage("test", good)
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert set(rows.values()) == {"passed"}
    probes = {"healthz", "readyz", "metrics", "openapi", "unknown-path", "malformed-body"}
    assert probes | RESTRICTED | {"examples", "list", "labels", "user", "sigterm"} <= set(rows)
    assert done.stderr.splitlines() == [
        f"testing {good} by docker",
        f"{good}: {len(rows)} passed",
    ]


@pytest.fixture(scope="module")
def tested(iris: Project, good: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the good image, with the contract of each platform."""
    options = [word for name in CONTRACTS for word in ("--contract", name)]
    path = tmp_path_factory.mktemp("report") / "measured.json"
    path.write_text(iris.mfimage("test", good, "--json", *options).stdout)
    return path


def test_contracts_of_platforms(tested):
    """Each in a container that is started as the platform does it: variables, command, user."""
    assert tuple(PLATFORMS) == CONTRACTS
    checks = {check["name"]: check for check in json.loads(tested.read_text())["checks"]}
    found = {"oip-infer-2", "kserve-predict", "vertex-predict", "vertex-health", "mlflow-frame-2"}
    users = {f"sagemaker-{uid}-{name}" for uid in ("0", "1000") for name in ("ping", "lines")}
    assert found | users <= set(checks)
    assert {checks[name]["status"] for name in found | users} == {"passed"}
    assert "failed" not in {check["status"] for check in checks.values()}


def test_compose_runs_an_image_by_what_was_measured(iris, good, tested, tmp_path):
    """As docs/manifests.md says: test, write, up, call, down."""
    compose = support.ensure_compose()
    measured = json.loads(tested.read_text())["measured"]
    assert 0 < measured["start_seconds"] < 60
    assert 20 << 20 < measured["memory_bytes"] < 1 << 30
    name, port = f"mfimage-{uuid.uuid4().hex[:8]}", free_port()
    options = ["--name", name, "--publish", f"127.0.0.1:{port}", "--measured", str(tested)]
    options += ["--env", "GREETING=$HOME is ${HOME}", "--env", "PORT=9000"]
    file = tmp_path / "compose.yaml"
    written = iris.mfimage("manifest", "compose", good, *options).stdout
    interval = 'interval: "10s"'
    assert interval in written
    file.write_text(written.replace(interval, "interval: 1s"))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*compose, "-f", str(file), "-p", name, *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert name in run("config")
    try:
        run("up", "--detach", "--wait")  # until the healthcheck passes
        container = run("ps", "-q").strip()

        def inspected() -> Any:
            return json.loads(subprocess.check_output(["docker", "inspect", container]))[0]

        answer = httpx.post(f"http://127.0.0.1:{port}/double", json={"a": 1})
        assert answer.json() == {"a": 2}
        running = inspected()
        assert running["State"]["Health"]["Status"] == "healthy"
        assert running["HostConfig"]["ReadonlyRootfs"]
        assert running["HostConfig"]["Memory"] > measured["memory_bytes"]
        assert "GREETING=$HOME is ${HOME}" in running["Config"]["Env"]
        run("stop")
        assert inspected()["State"]["ExitCode"] == 0
    finally:
        run("down", "--volumes")
    # Kubernetes would pull it: it has no digest.
    refused = iris.mfimage("manifest", "deployment", good, check=False)
    assert refused.returncode == 1
    assert "is not known: it is in the Docker engine only" in refused.stderr


def test_each_fault_is_found_by_its_check(iris, spoiled):
    image = spoiled(
        "faults",
        edited(PROBLEMS, "return Problem(422", "return Problem(400"),
        "USER 0:0",
        "LABEL io.mfimage.task=Other/1/step/2",
        "ENV UPSTREAM=https://bob:hunter2@example.com MFIMAGE_GRACE=1",
        # Never told of SIGTERM: the shell is, and does not care.
        'ENTRYPOINT ["sh", "-c", "trap \'\' TERM; python -m mfimage.runtime serve & wait"]',
    )
    checks, failed, told = check(iris, image)
    assert failed == {"labels", "credentials", "user", "process", "malformed-body", "sigterm"}
    assert (
        "the label io.mfimage.task says Other/1/step/2; function.json has"
        in checks["labels"]["detail"]
    )
    assert "hunter2" not in told + json.dumps(checks)
    assert "variable UPSTREAM" in checks["credentials"]["detail"]
    assert "answers 400" in checks["malformed-body"]["detail"]
    assert "after SIGTERM" in checks["sigterm"]["detail"]
    assert "still running" in checks["sigterm"]["detail"]


def test_one_that_is_never_ready_shows_its_log(iris, spoiled):
    program = "import time; print('fetching the weights', flush=True); time.sleep(60)"
    image = spoiled("slow", f"ENTRYPOINT {json.dumps(['python', '-c', program])}")
    checks, failed, told = check(iris, image, "--timeout", "1")
    assert failed == {"ready"}
    assert {checks[name]["status"] for name in {"examples", "sigterm", *RESTRICTED}} == {"skipped"}
    assert "not ready within 1 s" in told
    assert "fetching the weights" in told


def test_one_that_ends_at_once_is_not_waited_for(iris, spoiled):
    image = spoiled("ends", 'ENTRYPOINT ["python", "-c", "raise SystemExit(\'no model\')"]')
    _, failed, told = check(iris, image)
    assert failed == {"ready"}
    assert "exit code 1" in told
    assert "no model" in told
    image = spoiled("nothing", 'ENTRYPOINT ["/no/such/program"]')
    _, failed, told = check(iris, image)
    assert failed == {"ready"}
    assert "/no/such/program" in told


def test_other_answers_than_recorded(iris, spoiled):
    image = spoiled("other", edited("/opt/function/code/double.py", "2 * value", "2.002 * value"))
    checks, failed, _ = check(iris, image)
    assert failed == {"examples", "list"}
    assert 'example 0: result["a"]: expected 0.2, got 0.2002' in checks["examples"]["detail"]
    assert checks["read-only"]["status"] == "skipped"
    _, failed, _ = check(iris, image, "--rtol", "0.01")
    assert failed == set()


NEEDS = """
    status = open('/proc/self/status').read()
    assert 'CapBnd:\\t0000000000000000' not in status
    open('/scratch/file', 'w').close()
    return"""


@pytest.fixture
def needy(spoiled) -> str:
    """An image that works where it may write and has capabilities to gain."""
    code = edited("/opt/function/code/double.py", "\n    return", NEEDS)
    return spoiled("needy", code, "USER 0:0", "RUN mkdir -m 777 /scratch", "USER 1000:0")


def test_what_an_image_needs_too_much_is_named(iris, needy):
    checks, failed, _ = check(iris, needy)
    assert failed == {"read-only", "no-capabilities"}
    assert "example 0: result: answered 500" in checks["read-only"]["detail"]


def test_an_archive_is_in_the_engine_only_while_it_is_tested(iris, spoiled, tmp_path):
    function = "/opt/function/function.json"
    lines = ("FROM scratch", f"COPY --from=0 {function} {function}", 'ENTRYPOINT ["/none"]')
    image = spoiled("archived", *lines)
    subprocess.run(["docker", "save", image, "-o", tmp_path / "image.tar"], check=True)
    with Engine.connect() as engine:
        identity = engine.inspect(image).id
        engine.remove(image, force=True)
        checks, failed, _ = check(iris, f"docker-archive:{tmp_path}/image.tar")
        assert engine.inspect(identity) is None
    assert failed == {"labels", "user", "ready"}
    assert checks["function"]["status"] == "passed"


RAY = """\
#!/opt/venv/bin/python
import http.server
class Head(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # As Ray's dashboard, which has no /api/healthz.
        self.send_response(200 if self.path == '/api/gcs_healthz' else 404)
        self.send_header('Content-Length', '0')
        self.end_headers()
http.server.HTTPServer(('', 8265), Head).serve_forever()
"""


def test_an_image_for_ray(iris, spoiled):
    """Of Ray itself there is only as much as answers its health check."""
    write = f"import os; open('/usr/bin/ray', 'w').write({RAY!r}); os.chmod('/usr/bin/ray', 0o755)"
    image = spoiled(
        "ray",
        "USER 0:0",
        f"RUN {json.dumps(['python', '-c', write])}",
        "USER 1000:0",
        "LABEL io.mfimage.target=ray io.mfimage.ray-version=2.60.0 io.mfimage.ray-parts=default",
        'CMD ["ray", "start", "--head"]',
    )
    checks, failed, _ = check(iris, image)
    assert failed == {"programs", "labels"}
    assert checks["programs"]["detail"] == "not on PATH: wget"
    assert "io.mfimage.python-version is missing" in checks["labels"]["detail"]
    passed = {"examples", "head", "process", "user", *RESTRICTED}
    assert {checks[name]["status"] for name in passed} == {"passed"}
    assert checks["openapi"]["status"] == "skipped"
    assert "Ray Serve" in checks["openapi"]["detail"]


@pytest.mark.parametrize(
    ("image", "env", "said"),
    [
        ("{base}", {}, "holds no function"),
        ("oci:.", {}, "index.json"),
        ("iris:1", NO_ENGINE, "runs an image in a Docker engine: start Docker"),
        ("oci:.", NO_ENGINE, "runs an image in a Docker engine: start Docker"),
    ],
)
def test_what_cannot_be_tested(iris, base_image, image, env, said):
    done = iris.mfimage("test", image.format(base=base_image), check=False, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
