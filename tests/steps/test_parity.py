"""A step behaves the same wherever it runs: one table of decorators, by one table of places."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.steps.running import Flows, metadata_of

pytestmark = [pytest.mark.docker, pytest.mark.slow]

# Where a step runs: the decorator's line, and the fields that only it adds to a task's metadata.
PLACES = {
    "local": ("", set()),
    "docker": ("@docker(image={image!r})", {"step.executor", "step.image"}),
    "fork": ("@worker_pool(size=2)", {"step.executor", "step.pool", "step.worker"}),
    "loop": ("@worker_pool(size=2, mode='loop')", {"step.executor", "step.pool", "step.worker"}),
}

FLOW = """
import os, signal, sys, time
from metaflow import (
    Config, FlowSpec, Parameter, card, catch, current, docker, environment, resources, retry,
    secrets, step, timeout, worker_pool,
)
from metaflow.cards import Markdown

class F(FlowSpec):
    size = Parameter("size", default=3)
    config = Config("config", default_value='{{"depth": 5}}')

    @step
    def start(self):
        self.items = {items}
        self.given = {{"x": [1, 2, 3]}}
        self.next(self.work, foreach="items")

    {place}
    {decorators}
    @step
    def work(self):
        {body}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = [getattr(each, "result", None) for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("joined", self.results)

if __name__ == "__main__":
    F()
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    decorators: str = ""
    body: str
    # How many attempts each item has.
    attempts: dict[str, int]
    fails: bool = False


INLINE = '@secrets(sources=[{"type": "inline", "id": "s", "options": {"env_vars": {"KEY": "v"}}}])'
ROWS = {
    "succeeds": Row(
        decorators="@environment(vars={'TWO_LINES': 'a\\nb', 'TOKEN': 'x y'})\n    "
        f"{INLINE}\n    @resources(cpu=1, memory=300)\n    @card(type='blank')",
        body="""
        print("out", self.input, "ünï")
        print("err", file=sys.stderr)
        os.write(1, b"no newline at the end")
        self.result = (self.input, self.index, self.given, self.size, self.config.depth)
        self.variables = [os.environ[each] for each in ("TWO_LINES", "TOKEN", "KEY")]
        current.card.append(Markdown("# Card of " + self.input))
        names = ["flow_name", "step_name", "retry_count", "username", "namespace",
                 "parameter_names", "project_name", "is_parallel"]
        self.current = {n: str(getattr(current, n, None)) for n in names}
        assert current.pathspec == f"F/{current.run_id}/work/{current.task_id}"
        assert self.foreach_stack()[0][2] == self.input
        """,
        attempts={"a": 1},
    ),
    "succeeds when tried again": Row(
        decorators="@retry(times=1, minutes_between_retries=0)",
        body="""
        print("attempt", current.retry_count, flush=True)
        if current.retry_count == 0:
            if self.input == "raises":
                raise ValueError("once")
            if self.input == "exits":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGSEGV)
        self.result = current.retry_count
        """,
        attempts={"raises": 2, "exits": 2, "crashes": 2},
    ),
    "is caught": Row(
        decorators='@catch(var="problem", print_exception=False)\n    @timeout(seconds=2)',
        body="""
        self.result = "before"
        if self.input == "raises":
            raise KeyError("missing")
        if self.input == "exits":
            os._exit(9)
        time.sleep(60)
        """,
        attempts={"raises": 1, "exits": 2, "sleeps": 1},
    ),
    "fails": Row(
        body="""
        if self.input == "b":
            time.sleep(60)
        raise ValueError("of " + self.input)
        """,
        attempts={"a": 1},
        fails=True,
    ),
}


def what_it_left(flows: Flows, row: Row) -> dict[str, Any]:
    """Return what two runs must have in common."""
    run = flows.latest()
    left: dict[str, Any] = {"successful": run.successful}
    # A task that fails ends the others, where they are.
    for item, task in zip(row.attempts, flows.tasks("work"), strict=not row.fails):
        attempts = {each.value for each in task.metadata if each.name == "attempt"}
        assert len(attempts) == row.attempts[item], (flows.folder.name, item, attempts)
        cards = _cards(task) if "@card" in row.decorators else []
        left[item] = {
            "artifacts": {each.id: repr(each.data) for each in task if each.id != "problem"},
            "problem": getattr(task["problem"].data, "type", None) if "problem" in task else "",
            "stdout": _comparable(task.stdout, flows),
            "stderr": _comparable(task.stderr, flows),
            "attempts": sorted(each.value for each in task.metadata if each.name == "attempt"),
            # A card's field is named by a random number.
            "metadata": sorted(
                re.sub(r"^[0-9a-f]{32}$", "<random>", each.name)
                for each in task.metadata
                if not each.name.startswith("step.")
            ),
            "return codes": sorted(each.value for each in task.metadata if each.name == "runtime"),
            "cards": cards,
        }
    return left


def _cards(task: Any) -> list[str]:
    from metaflow.cards import get_cards

    return [re.findall(r"Card of \w", each.get()) for each in get_cards(task)]


def _comparable(log: str, flows: Flows) -> str:
    log = log.replace(str(flows.folder), "<folder>")
    # Only a pool says how a process ended, and stands in a stack.
    log = re.sub("error: the item's process .*\n", "", log)
    log = re.sub(r'.*File "[^"]*/steps/pool/.*\n(?!.*File).*\n(>? *\^+\n)?', "", log)
    log = re.sub(r"\d{4}-\d\d-\d\d [\d:.]+", "<time>", re.sub(r"\d{16}", "<run>", log))
    return re.sub(r'File "[^"]*(site|metaflow)[^"]*", line \d+', "File", log)


@pytest.mark.parametrize("name", ROWS)
def test_a_step_behaves_the_same(name: str, flows: Flows, step_image: str) -> None:
    row = ROWS[name]
    places = {place: Flows(folder=flows.folder / place) for place in PLACES}
    for place, own in places.items():
        own.write(
            FLOW.format(
                items=["a", "b"] if row.fails else [*row.attempts],
                place=PLACES[place][0].format(image=step_image),
                decorators=row.decorators,
                body=row.body.strip(),
            )
        )
    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(lambda own: own.run("run", fails=row.fails), places.values()))
    found = {}
    for place, own in places.items():
        fields = PLACES[place][1]
        found[place] = what_it_left(own, row)
        shown = {name for task in own.tasks("work") for name in metadata_of(task)}
        assert {name for name in shown if name.startswith("step.")} == fields
    expected = found.pop("local")
    for place, left in found.items():
        for part in expected:
            for key in expected[part] if isinstance(expected[part], dict) else ():
                assert (place, left[part][key]) == (place, expected[part][key]), f"{part}: {key}"
        assert left == expected, place
