"""``sandbox="strict"``: what a task may do, and what of its results the host keeps."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfimage.steps.executor import Refused, StepCommand
from mfimage.steps.sandbox import Sandbox, expand
from tests.steps.running import Flows, metadata_of

FLOW = """
import json, os, socket, sys, pickle
from metaflow import FlowSpec, Parameter, card, current, docker, resources, step
from metaflow.cards import Markdown

class F(FlowSpec):
    n = Parameter("n", default=3)

    @step
    def start(self):
        self.big = b"x" * 100_000
        self.items = [1, 2]
        self.next(self.work, foreach="items")

    @docker(image={image!r}, sandbox="strict")
    @card(type="blank")
    @step
    def work(self):
        {body}
        self.next(self.join)

    @docker(image={image!r}, sandbox="strict")
    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""
WORK = """
        self.y = self.input * self.n + len(self.big)
        print("worked")
        current.card.append(Markdown("# Card"))
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        self.seen = {
            "networks": os.listdir("/sys/class/net"),
            "capabilities": int(status["CapEff"], 16),
            "no new privileges": int(status["NoNewPrivs"]),
            "environment": dict(os.environ),
        }
        self.failed = []
        for path in ("/etc/x", "/opt/x", "x", "/run/mfimage-inputs/x", *blobs()):
            try:
                open(path, "a").close()
            except OSError as error:
                self.failed.append(path)
        self.flows = os.listdir(current_root())
"""
HELPERS = """
def current_root():
    return os.path.join(os.environ["METAFLOW_DATASTORE_SYSROOT_LOCAL"], ".metaflow")

def blobs():
    for folder, _, names in os.walk("/run/mfimage-inputs"):
        yield from (os.path.join(folder, name) for name in names)

class F("""


@pytest.mark.docker
@pytest.mark.slow
def test_a_sandboxed_flow(flows: Flows, step_image: str) -> None:
    flows.write(FLOW.format(image=step_image, body=WORK.strip()).replace("class F(", HELPERS[1:]))
    other = flows.folder / ".metaflow" / "OtherFlow"
    other.mkdir(parents=True)
    flows.run("run", AWS_SECRET_ACCESS_KEY="hush", METAFLOW_SERVICE_AUTH_KEY="hush")
    run = flows.latest()
    assert run["join"].task["ys"].data == [100003, 100006]
    for task in flows.tasks("work"):
        seen = task["seen"].data
        environment = seen.pop("environment")
        assert seen == {"networks": ["lo"], "capabilities": 0, "no new privileges": 1}
        assert "hush" not in environment.values()
        assert len(task["failed"].data) > 5, "the image, the flow and each input"
        assert task["flows"].data == ["F"], "nothing of other flows"
        assert task.stdout == "worked\n"
        assert metadata_of(task)["attempt_ok"] == "True"
        from metaflow.cards import get_cards

        assert "Card" in get_cards(task)[0].get()
    assert not list(Path("/tmp").glob(f"mfimage-steps-{os.getpid()}-*"))


ATTACK = """
        class Attack:
            def __reduce__(self):
                return os.mkdir, ({path!r},)
        self.y = 1
        raw = pickle.dumps(Attack())
        import gzip, hashlib
        key = hashlib.sha1(raw).hexdigest()
        root = os.path.join(os.environ["METAFLOW_DATASTORE_SYSROOT_LOCAL"], ".metaflow")
        folder = os.path.join(root, "F/data", key[:2])
        os.makedirs(folder, exist_ok=True)
        with gzip.open(os.path.join(folder, key), "w") as file:
            file.write(raw)
        import atexit
        def swap(path=os.path.join(root, current.pathspec, "0.data.json")):
            data = json.load(open(path))
            data["objects"]["_transition"] = key
            json.dump(data, open(path, "w"))
        atexit.register(swap)
"""


@pytest.mark.docker
@pytest.mark.slow
def test_what_the_scheduler_reads_runs_no_code(
    flows: Flows, step_image: str, tmp_path: Path
) -> None:
    path = tmp_path / "run-on-the-host"
    body = ATTACK.format(path=str(path)).strip()
    flows.write(FLOW.format(image=step_image, body=body))
    printed = flows.run("run", fails=True)
    assert "error: the sandboxed task left " in printed
    assert "the pickle names posix.mkdir" in printed
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('sandbox="loose"', "sandbox='loose' is not \"strict\""),
        ('sandbox="strict", network="host"', "has no network; leave network= out"),
        ('sandbox="strict", volumes=["/tmp"]', "only reads volumes"),
    ],
)
def test_what_contradicts_a_sandbox_is_refused(options: str, expected: str, flows: Flows) -> None:
    source = FLOW.format(image="none", body="pass").replace('sandbox="strict"', options)
    flows.write(source)
    assert expected in flows.run("run", fails=True)


# What a task can leave, without an engine.


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    """A sandbox of the task F/1/work/2, whose input is F/1/start/1."""
    root = tmp_path / ".metaflow"
    given = blob(root, 5)
    put(root / "F/1/start/1/0.data.json", {"objects": {"x": given}})
    put(root / "F/1/work/2/_meta/_self.json", {"task_id": "2"})
    put(root / "F/1/other/9/0.data.json", {"objects": {"x": blob(root, "of another task")}})
    argv = (
        "python", "flow.py", "--metadata", "local", "--datastore", "local", "--datastore-root",
        str(root), "step", "work", "--run-id", "1", "--input-paths", "1/start/1",
    )  # fmt: skip
    command = StepCommand(argv=argv, env={}, cwd=str(tmp_path), pathspec="F/1/work/2", attempt=0)
    private = tmp_path / "private"
    private.mkdir()
    return Sandbox.make(command, str(private))


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def blob(root: Path, value: Any) -> str:
    raw = pickle.dumps(value)
    key = hashlib.sha1(raw).hexdigest()
    path = root / "F" / "data" / key[:2] / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw))
    put(path.with_name(f"{key}_meta"), {"cas_raw": False, "cas_version": 1})
    return key


def finish(box: Sandbox, **artifacts: str) -> None:
    info = {name: {"encoding": "pickle-v4"} for name in artifacts}
    put(box.own / "F/1/work/2/0.data.json", {"objects": artifacts, "info": info})


def test_results_are_kept(box: Sandbox) -> None:
    finish(box, y=blob(box.own, [1, 2]), _transition=blob(box.own, (["end"], None)))
    put(box.own / "F/1/work/2/_meta/sysmeta_x_1.json", {"value": "x"})
    box.collect()
    kept = {path.relative_to(box.root).as_posix() for path in box.root.rglob("*")}
    assert {"F/1/work/2/0.data.json", "F/1/work/2/_meta/sysmeta_x_1.json"} <= kept
    key = hashlib.sha1(pickle.dumps([1, 2])).hexdigest()
    assert {f"F/data/{key[:2]}/{key}", f"F/data/{key[:2]}/{key}_meta"} <= kept


def test_a_task_finds_its_inputs_alone(box: Sandbox) -> None:
    assert (box.own / "F/1/start/1/0.data.json").exists()
    assert not (box.own / "F/1/other").exists()
    assert len(list(box.linked.rglob("*_meta"))) == 1


def test_an_input_passed_on_is_kept(box: Sandbox) -> None:
    finish(box, x=hashlib.sha1(pickle.dumps(5)).hexdigest(), _task_ok=blob(box.own, True))
    box.collect()


def other_task(box: Sandbox) -> None:
    finish(box, x=hashlib.sha1(pickle.dumps("of another task")).hexdigest())


def wrong_digest(box: Sandbox) -> None:
    key = blob(box.own, "mine")
    (box.own / "F" / "data" / key[:2] / key).write_bytes(gzip.compress(b"other bytes"))
    finish(box, x=key)


def code(box: Sandbox) -> None:
    finish(box, _foreach_num_splits=blob(box.own, os.system))


def endless_foreach(box: Sandbox) -> None:
    finish(box, _unbounded_foreach=blob(box.own, print))


def no_json(box: Sandbox) -> None:
    put(box.own / "F/1/work/2/_meta/sysmeta_x_1.json", [1])


@pytest.mark.parametrize("leave", [other_task, wrong_digest, code, endless_foreach, no_json])
def test_what_is_not_the_tasks_own_is_refused(
    leave: Callable[[Sandbox], None], box: Sandbox
) -> None:
    before = sorted(box.root.rglob("*"))
    leave(box)
    with pytest.raises(Refused, match="the sandboxed task left F/"):
        box.collect()
    assert sorted(box.root.rglob("*")) == before


def test_other_tasks_files_and_links_are_left_out(box: Sandbox) -> None:
    put(box.own / "F/1/start/1/1.data.json", {})
    put(box.own / "F/1/work/2/1.data.json", {})
    put(box.own / "F/1/work/2/_meta/_self.json", {"task_id": "changed"})
    put(box.own / "G/1/work/2/0.data.json", {})
    put(box.own / "F/1/work/2/0.runtime_stdout.log", {})
    (box.own / "F/1/work/2/0.task_end").symlink_to("/etc/passwd")
    before = sorted(box.root.rglob("*"))
    box.collect()
    assert sorted(box.root.rglob("*")) == before
    assert json.loads((box.root / "F/1/work/2/_meta/_self.json").read_text()) == {"task_id": "2"}


@pytest.mark.parametrize(
    "items", [["1/a/2"], ["1/a/2", "1/a/3"], [f"1/a/{n}" for n in range(500)], ["1/a/1", "2/b"]]
)
def test_lists_as_metaflow_compresses_them(items: list[str]) -> None:
    from metaflow.util import compress_list

    assert expand(compress_list(items)) == items


@pytest.mark.parametrize("name", ["--datastore", "--metadata"])
def test_what_needs_a_network_is_refused(name: str, tmp_path: Path) -> None:
    options = {"--datastore": "local", "--metadata": "local", "--datastore-root": str(tmp_path)}
    argv = (
        "python",
        "flow.py",
        *(part for each in {**options, name: "s3"}.items() for part in each),
    )
    command = StepCommand(argv=argv, env={}, cwd="/x", pathspec="F/1/s/2", attempt=0)
    with pytest.raises(Refused, match=f"has no network, but the flow has {name} s3") as raised:
        Sandbox.make(command, str(tmp_path))
    assert raised.value.hint == f"run the flow with {name} local, or leave sandbox= out"
