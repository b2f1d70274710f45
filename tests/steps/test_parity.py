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
        self.items = ["a", "b"]
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
    attempts: int = 1
    fails: bool = False


INLINE = '@secrets(sources=[{"type": "inline", "id": "s", "options": {"env_vars": {"KEY": "v"}}}])'
ROWS = {
    "plain": Row(
        body="""
        print("out", self.input, "ünï")
        print("err", file=sys.stderr)
        os.write(1, b"no newline at the end")
        self.result = (self.input, self.index, self.given, self.size, self.config.depth)
        """
    ),
    "retry": Row(
        decorators="@retry(times=1, minutes_between_retries=0)",
        body="""
        print("attempt", current.retry_count)
        if current.retry_count == 0:
            raise ValueError("once")
        self.result = current.retry_count
        """,
        attempts=2,
    ),
    "exit": Row(
        decorators="@retry(times=1, minutes_between_retries=0)",
        body="""
        if current.retry_count == 0:
            print("leaving", flush=True)
            os._exit(3)
        self.result = "stayed"
        """,
        attempts=2,
    ),
    "segfault": Row(
        decorators="@retry(times=1, minutes_between_retries=0)",
        body="""
        if current.retry_count == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        self.result = "alive"
        """,
        attempts=2,
    ),
    "timeout": Row(
        decorators='@catch(var="problem")\n    @timeout(seconds=2)',
        body="""
        if self.input == "a":
            time.sleep(60)
        self.result = self.input
        """,
        attempts=1,
    ),
    "catch": Row(
        decorators='@catch(var="problem", print_exception=False)',
        body="""
        self.result = "before"
        raise KeyError("missing")
        """,
    ),
    "catch a crash": Row(
        decorators='@catch(var="problem")\n    @retry(times=1, minutes_between_retries=0)',
        body="os._exit(9)",
        attempts=3,
    ),
    "environment, secrets, resources": Row(
        decorators="@environment(vars={'TWO_LINES': 'a\\nb', 'TOKEN': 'x y'})\n    "
        f"{INLINE}\n    @resources(cpu=1, memory=300)",
        body='self.result = [os.environ[each] for each in ("TWO_LINES", "TOKEN", "KEY")]',
    ),
    "card": Row(
        decorators='@card(type="blank")',
        body="""
        current.card.append(Markdown("# Card of " + self.input))
        self.result = 1
        """,
    ),
    "current": Row(
        body="""
        names = ["flow_name", "step_name", "retry_count", "username", "namespace",
                 "parameter_names", "project_name", "is_parallel"]
        self.result = {n: str(getattr(current, n, None)) for n in names}
        assert current.pathspec == f"F/{current.run_id}/work/{current.task_id}"
        assert self.foreach_stack()[0][2] == self.input
        """
    ),
    "failure": Row(
        body="""
        if self.input == "b":
            time.sleep(60)
        raise ValueError("of " + self.input)
        """,
        fails=True,
    ),
}


def what_it_left(flows: Flows, row: Row) -> dict[str, Any]:
    """Return what two runs must have in common."""
    run = flows.latest()
    left: dict[str, Any] = {"successful": run.successful}
    # A task that fails ends the others, where they are.
    for number, task in enumerate(flows.tasks("work")[: 1 if row.fails else None]):
        assert len({each.value for each in task.metadata if each.name == "attempt"}) == row.attempts
        cards = _cards(task) if "@card" in row.decorators else []
        left[f"task {number}"] = {
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
