"""From ``python train.py run`` to an answer over HTTP, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine
from tests.e2e.conftest import SETOSA, Project, serving
from tests.image.builds import layer_names
from tests.support.docker import free_port, registry

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.index]
ANSWER = {"prediction": 0, "name": "setosa"}


def test_loads_in_another_process_and_folder_after_the_source_is_gone(iris, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(iris.folder, project)
    reference = Project(folder=project, task=iris.task).bind("predict.py:predict")
    (project / "predict.py").unlink()
    script = (
        "import json, sys; from metaflow import function_from_json\n"
        f"print(json.dumps(function_from_json(sys.argv[1])({SETOSA!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, reference],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == ANSWER


def test_binding_twice_gives_the_same_reference(iris):
    assert iris.bind("predict.py:predict") == iris.bind("predict.py:predict")


def test_image_answers_under_every_restriction(image):
    restricted = {"user": "12345", "read_only": True, "tmpfs": ("/tmp",), "cap_drop": ["ALL"]}
    with serving(image, **restricted) as server:
        assert server.post("/predict", SETOSA) == (200, ANSWER)
        status, items = server.post("/predict/batch", [SETOSA, 3, SETOSA])
        assert status == 200
        assert [item.get("result") for item in items] == [ANSWER, None, ANSWER]
        assert items[1]["error"]["status"] == 422
        status, problem = server.post("/predict", "nothing")
        assert (status, problem["detail"]) == (422, "data: expected dict, got 'nothing'")
        assert server.ask("GET", "/healthz")[0] == 200
        paths = server.ask("GET", "/openapi.json")[1]["paths"]
        assert "/predict" in paths and "/predict/batch" in paths
        assert "mfimage_" in server.ask("GET", "/metrics")[1]


def test_an_image_without_examples_passes_its_checks(iris, image):
    """Its function fails on the empty record that they send instead: that is an answer."""
    done = iris.mfimage("test", image)
    assert ", 2 skipped" in done.stderr


def test_image_runs_as_an_unprivileged_user_without_build_tools(image):
    with Engine.connect() as engine:
        info = engine.inspect(image)
        assert info is not None
        assert info.user == "1000:0"
        assert info.labels["io.mfimage.task"].startswith("IrisFlow/")
        probe = "import os, shutil; print(os.getuid(), *map(shutil.which, ('uv', 'gcc', 'git')))"
        said = engine.run_capture(image, ["/opt/venv/bin/python", "-c", probe])
    assert said.split() == ["1000", "None", "None", "None"]


def test_sigterm_finishes_what_is_under_way_and_exits_0(iris, base_image, images):
    iris.mfimage("build", "slow.py:slow", "--task", iris.task, "-t", "mfimage-test-slow:1")
    images.append("mfimage-test-slow:1")
    with serving("mfimage-test-slow:1") as server:
        client = subprocess.Popen(
            ["curl", "-sS", f"http://{server.address}/slow", "-d", '{"a": 1}'],
            stdout=subprocess.PIPE,
        )
        time.sleep(0.4)
        container = server.container.get_wrapped_container()
        container.stop(timeout=20)
        assert client.communicate()[0] == b'{"a":1}'
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0


def test_batch_function_is_served_one_record_a_request(iris, base_image, images):
    name = "mfimage-test-many:1"
    iris.mfimage("build", "many.py:mean", "--task", iris.task, "-t", name)
    images.append(name)
    with serving(name) as server:
        assert server.post("/mean", {"a": 1, "b": 2}) == (200, 1.5)
        status, items = server.post("/mean/batch", [{"a": 1}, {}, {"a": 2}])
        assert status == 200
        assert [item.get("result") for item in items] == [1, None, 2]


def test_rendered_folder_builds_the_same_layers(iris, slow, images, tmp_path):
    name = "mfimage-test-docker:1"
    iris.mfimage("build", slow, "--builder", "docker", "-t", name)
    images.append(name)
    out = tmp_path / "out"
    assert iris.mfimage("render", slow, "-o", str(out)).stdout == f"{out}\n"
    tag = "mfimage-test-rendered:1"
    images.append(tag)
    DockerCommand.find().build(out, tags=[tag], secrets=_ca_secret())
    with Engine.connect() as engine:
        first, second = engine.inspect(tag), engine.inspect(name)
    assert first is not None and second is not None
    assert first.layers[:-1] == second.layers[:-1]
    # `render` does not read the base: the SBOM in the last layer knows less of it.
    assert layer_names(tag, -1).keys() == layer_names(name, -1).keys()


def test_call_and_serve_on_this_machine(iris, predict):
    lines = f"{json.dumps(SETOSA)}\n{json.dumps(SETOSA)}\n"
    called = iris.mfimage("call", predict, stdin=lines)
    assert [json.loads(line) for line in called.stdout.splitlines()] == [ANSWER, ANSWER]
    port = str(free_port())
    command = [str(Path(sys.executable).with_name("mfimage")), "serve", predict, "--port", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        curl = ["curl", "-sS", "--retry", "50", "--retry-delay", "0", "--retry-connrefused"]
        url = f"http://127.0.0.1:{port}"
        subprocess.run([*curl, "--fail", f"{url}/readyz"], check=True, capture_output=True)
        answer = subprocess.check_output([*curl, f"{url}/predict", "-d", json.dumps(SETOSA)])
        assert json.loads(answer) == ANSWER
    finally:
        server.terminate()
        assert server.wait(timeout=20) == 0


def test_push_prints_a_digest_that_can_be_pulled(iris, predict, image, images, tmp_path):
    with registry("plain", directory=tmp_path) as running, Engine.connect() as engine:
        tag = f"{running.address}/team/iris:1"
        images.append(tag)
        pushed = iris.mfimage("build", predict, "-t", tag, "--push").stdout.strip()
        name, _, digest = pushed.partition("@")
        assert name == f"{running.address}/team/iris"
        assert digest.startswith("sha256:")
        engine.remove(tag)
        images.append(pushed)
        assert engine.pull(pushed).labels["io.mfimage.function.name"] == "predict"


def test_inspect_tells_of_reference_and_image(iris, image, predict):
    of_image = json.loads(iris.mfimage("inspect", image, "--json").stdout)
    of_reference = json.loads(iris.mfimage("inspect", predict, "--json").stdout)
    assert of_image["function.digest"] == of_reference["digest"]
    assert of_image["task"] == of_reference["task"]


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["build", "{reference}", "-t", "a b"], {}, "tag: 'a b'"),
        (["build", "{reference}"], {"DOCKER_HOST": "unix:///nowhere.sock"}, "/nowhere.sock"),
        (["build", "predict.py:predict"], {}, "is a function, not a reference"),
        (["build", "/no/functions/x/1/function.json"], {}, "no function package at"),
        (["bind", "nofile.py:predict", "--task", "IrisFlow"], {}, "there is no nofile.py here"),
        (["bind", "predict.py:nothing", "--task", "IrisFlow"], {}, "predict, predict_many"),
        (["bind", "predict.py:predict", "--task", "{start}"], {}, "has no artifact"),
        (["bind", "predict.py:predict", "--task", "NoFlow"], {}, "NoFlow"),
        (["inspect", "no-such-image:1"], {}, "no image 'no-such-image:1'"),
    ],
)
def test_wrong_input_is_told_in_two_lines(iris, predict, base_image, arguments, env, message):
    start_step = iris.task.replace("/train", "/start")
    start = time.monotonic()
    done = iris.mfimage(
        *(a.format(reference=predict, start=start_step) for a in arguments), check=False, env=env
    )
    assert time.monotonic() - start < 10
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint, *rest = done.stderr.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ") and not rest
    assert message in done.stderr


def test_base_of_another_python_is_refused_before_the_build(
    iris, predict, base_image, images, tmp_path
):
    lines = (
        f"FROM {base_image}",
        "ENV PATH=/other:$PATH",
        "RUN mkdir /other && printf '#!/bin/sh\\necho 3.8.1\\n' >/other/python && "
        "chmod +x /other/python",
    )
    (tmp_path / "Dockerfile").write_text("\n".join((*lines, "")))
    DockerCommand.find().build(tmp_path, tags=["mfimage-test-other:1"])
    images.append("mfimage-test-other:1")
    # Only a container shows the version: nothing in the layers names it.
    options = ["--builder", "docker", "--base-image", "mfimage-test-other:1"]
    done = iris.mfimage("build", predict, *options, check=False)
    assert done.returncode == 1
    assert "has Python 3.8" in done.stderr


def test_a_changed_byte_in_any_blob_stops_the_build(iris, base_image, tmp_path):
    root = tmp_path / "root"
    reference = iris.bind("predict.py:predict", "--root", str(root))
    for blob in sorted((root / "blobs" / "sha256").iterdir()):
        content = blob.read_bytes()
        blob.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        # The oci builder would not read what is in its cache, verified, already.
        done = iris.mfimage("build", reference, "--builder", "docker", check=False)
        assert done.returncode == 1
        assert blob.name in done.stderr
        blob.write_bytes(content)


def _ca_secret() -> dict[str, bytes]:
    from tests.support.docker import host_ca_bundle

    bundle = host_ca_bundle()
    return {"ca": bundle.read_bytes()} if bundle else {}
