"""Pools of warm workers: what items share, how they fail, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfimage.steps.pool import protocol, server
from tests.steps.running import Flows, metadata_of

pytestmark = pytest.mark.slow

FLOW = """
import os, random, signal, sys, threading, time
from metaflow import FlowSpec, catch, current, retry, step, timeout, worker_pool
{top}

class F(FlowSpec):
    @step
    def start(self):
        self.items = list(range({items}))
        self.next(self.work, foreach="items")

    {decorators}
    @step
    def work(self):
        {body}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = [each.result for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""


def flow(
    body: str, *, items: int = 4, pool: str = "size=2", decorators: str = "", top: str = ""
) -> str:
    """Return a flow's source, with a pool for the items of a foreach."""
    lines = [f"@worker_pool({pool})", *decorators.splitlines()]
    return FLOW.format(
        top=top, items=items, body=body.strip(), decorators="\n    ".join(filter(None, lines))
    )


def processes(folder: Path) -> list[str]:
    """Return the command lines of all processes that run in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has just ended
            continue
    return found


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition, or fail."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)


def results(flows: Flows) -> list[Any]:
    """Return what the items of the latest run returned, in the order of the items."""
    return list(flows.latest()["join"].task["results"].data)


def test_forked_items_share_a_warm_worker_and_nothing_else(flows: Flows) -> None:
    flows.write(
        flow(
            """
        COUNT.append(1)
        self.result = os.getpid(), os.getppid(), len(COUNT), Made(self.input), random.random()
        """,
            items=8,
            top="COUNT = []\nclass Made:\n    def __init__(self, value): self.value = value",
        ),
    )
    printed = flows.run()
    assert "8 items done" in printed
    # The client cannot import the flow's __main__, so the numbers were checked in the flow.
    found = [metadata_of(task) for task in flows.tasks("work")]
    assert {each["step.executor"] for each in found} == {"pool"}
    assert {each["step.pool"] for each in found} == {"fork, 2"}
    assert len({each["step.worker"] for each in found}) <= 2
    assert processes(flows.folder) == []


def test_each_forked_item_is_a_process_with_its_own_random_numbers(flows: Flows) -> None:
    numpy = "sys.path.insert(0, os.path.dirname(__file__)); import numpy.random"
    fake = flows.folder / "numpy" / "random.py"
    fake.parent.mkdir()
    (flows.folder / "numpy" / "__init__.py").touch()
    fake.write_text("SEEDED = 0\ndef seed():\n    global SEEDED\n    SEEDED += 1\n")
    flows.write(
        flow(
            """
        SEEN.append(self.input)
        self.result = os.getpid(), os.getppid(), len(SEEN), random.random(), numpy.random.SEEDED
        """,
            items=6,
            pool="size=1",
            top=f"SEEN = []\n{numpy}",
        )
    )
    flows.run()
    pids, parents, seen, numbers, seeded = zip(*results(flows), strict=True)
    assert len(set(pids)) == len(set(numbers)) == 6
    assert len(set(parents)) == 1
    assert set(seen) == set(seeded) == {1}


def test_items_of_a_loop_share_a_process_but_not_their_state(flows: Flows) -> None:
    body = """
        assert not hasattr(self, "leak") and "LEAK" not in os.environ
        assert os.getcwd() == FOLDER
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert len(current.tags) == 0 and current.retry_count in (0, 1)
        self.leak = os.environ["LEAK"] = "x"
        SEEN.append(self.input)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        os.chdir("/")
        if self.input == 1 and current.retry_count == 0:
            raise ValueError("with its alarm set")
        time.sleep(0.3)
        self.result = os.getpid(), len(SEEN)
        """
    flows.write(
        flow(
            body,
            items=5,
            pool="size=1, mode='loop'",
            decorators="@retry(times=1, minutes_between_retries=0)\n@timeout(seconds=1)",
            top="SEEN, FOLDER = [], os.getcwd()",
        )
    )
    flows.run()
    pids, seen = zip(*results(flows), strict=True)
    assert len(set(pids)) == 1
    assert max(seen) == 6  # what is kept in a module stays
    assert {metadata_of(task)["step.pool"] for task in flows.tasks("work")} == {"loop, 1"}


@pytest.mark.parametrize("mode", ["fork", "loop"])
def test_an_item_finds_what_the_import_has_set(flows: Flows, mode: str) -> None:
    top = (
        "os.environ['SET'] = 'x'; os.environ.pop('GIVEN', None)\n"
        "os.chdir('inner')\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)"
    )
    flows.write(
        flow(
            "self.result = os.environ['SET'], 'GIVEN' in os.environ, os.path.basename(os.getcwd()),"
            " int(signal.getsignal(signal.SIGINT))",
            pool=f"size=1, mode={mode!r}",
            top=f"if 'work' in sys.argv:\n    {'; '.join(top.splitlines())}",
        )
    )
    (flows.folder / "inner").mkdir()
    flows.run(GIVEN="1")
    assert set(results(flows)) == {("x", False, "inner", 0)}


def test_the_python_that_another_decorator_chooses_runs_the_items(flows: Flows) -> None:
    run = Path(sys.executable)
    other = run.with_name("python" if run.name == "python3" else "python3")
    source = flow("self.result = sys.executable")
    chosen = f"""
from metaflow.decorators import StepDecorator

class Choose(StepDecorator):
    name = "choose"

    def runtime_step_cli(self, cli_args, *_):
        cli_args.entrypoint[0] = {str(other)!r}

F.work.decorators.append(Choose(statically_defined=True))

if __name__"""
    flows.write(source.replace("if __name__", chosen))
    flows.run()
    assert set(results(flows)) == {str(other)}


def test_a_worker_is_replaced_after_so_many_items(flows: Flows) -> None:
    flows.write(
        flow(
            "self.result = os.getpid()",
            items=5,
            pool="size=1, mode='loop', max_items_per_worker=2",
        )
    )
    flows.run()
    assert len(set(results(flows))) == 3


DEATHS = {
    "exit": ("os._exit(5)", "the item's process exited with status 5 before the step had ended"),
    "success": ("os._exit(0)", "the item's process exited with status 0 before the step had ended"),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    "memory": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); bytes(2**32)",
        "MemoryError",
    ),
}


@pytest.mark.parametrize("mode", ["fork", "loop"])
def test_a_death_fails_one_item_which_is_retried(flows: Flows, mode: str) -> None:
    """Every second item dies, each in its own way."""
    branches = "".join(
        f"""
        if self.input == {2 * number + 1} and current.retry_count == 0:
            print("dying", flush=True)
            {how}"""
        for number, (how, _) in enumerate(DEATHS.values())
    )
    flows.write(
        flow(
            f"{branches}\n        self.result = self.input * 2",
            items=2 * len(DEATHS),
            pool=f"size=2, mode={mode!r}",
            decorators="@retry(times=1, minutes_between_retries=0)",
        )
    )
    printed = flows.run()
    assert f"{2 * len(DEATHS)} items done, {len(DEATHS)} failed" in printed
    assert results(flows) == list(range(0, 4 * len(DEATHS), 2))
    tasks = flows.tasks("work")
    for task, (_, message) in zip(tasks[1::2], DEATHS.values(), strict=True):
        lines = [line for line in printed.splitlines() if f"/work/{task.id} (" in line]
        assert any(message in line for line in lines), (message, lines)
    attempts = [len({m.value for m in t.metadata if m.name == "attempt"}) for t in tasks]
    assert attempts == [1, 2] * len(DEATHS)


def test_without_a_retry_a_death_fails_the_run(flows: Flows) -> None:
    flows.write(flow("os.kill(os.getpid(), signal.SIGSEGV)", items=1))
    printed = flows.run(fails=True)
    assert "Task failed with a segmentation fault." in printed


@pytest.mark.parametrize(("mode", "items"), [("fork", 120), ("loop", 40)])
def test_items_that_fail_here_and_there_end_well(flows: Flows, mode: str, items: int) -> None:
    flows.write(
        flow(
            """
        if self.input % 10 == 3 and current.retry_count == 0:
            kind = self.input // 10 % 3
            if kind == 0:
                os._exit(3)
            if kind == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(self.input)
        self.result = self.input
        """,
            items=items,
            pool=f"size=2, mode={mode!r}, max_items_per_worker=20",
            decorators="@retry(times=1, minutes_between_retries=0)",
        )
    )
    printed = flows.run("run", "--max-num-splits", "500", "--max-workers", "4")
    assert f"{items} items done, {items // 10} failed" in printed
    assert results(flows) == list(range(items))


def test_a_flow_that_cannot_be_imported_fails_in_the_items_log(flows: Flows) -> None:
    top = "if 'step' in sys.argv and 'work' in sys.argv: import missing_module"
    flows.write(flow("self.result = 1", items=1, top=top))
    printed = flows.run(fails=True)
    assert re.search(r"/work/2 \(pid \d+\)\] .*No module named 'missing_module'", printed)


def test_threads_of_an_import_refuse_a_fork_by_name(flows: Flows) -> None:
    top = "threading.Thread(target=time.sleep, args=(600,), name='poller', daemon=True).start()"
    flows.write(flow("self.result = 1", items=1, decorators="@retry(times=3)", top=top))
    printed = flows.run(fails=True)
    assert "importing the flow has started threads (poller)" in printed
    assert "hint: start them in the step, or use @worker_pool(mode='loop')" in printed
    assert "This failed task will not be retried." in printed
    flows.write(flow("self.result = 1", items=2, pool="mode='loop'", top=top))
    flows.run()


def test_an_initialized_gpu_refuses_a_fork(tmp_path: Path) -> None:
    from mfimage.steps.pool.worker import unsafe

    (tmp_path / "7").symlink_to("/dev/nvidiactl")
    problem = unsafe(str(tmp_path))
    assert problem
    assert "initialized CUDA (/dev/nvidiactl is open)\nhint: use the GPU in the step" in problem


REFUSALS = {
    "size": ("@worker_pool(size=0)", "size=0 is not a positive whole number, nor 'auto'"),
    "words": ("@worker_pool(size='many')", "size='many' is not a positive whole number"),
    "max items": (
        "@worker_pool(max_items_per_worker=-1)",
        "max_items_per_worker=-1 is not a positive whole number, nor None",
    ),
    "mode": ("@worker_pool(mode='thread')", "mode='thread' is not one of fork, loop"),
    "kubernetes": ("@kubernetes\n    @worker_pool", "runs on this machine, @kubernetes does not"),
    "sandbox": (
        "@docker(image='x', sandbox='strict')\n    @worker_pool",
        "the items of a pool share a container, and a sandbox is for one task",
    ),
    "batch": ("@batch\n    @worker_pool", "runs on this machine, @batch does not"),
}
SMALL = """
from metaflow import FlowSpec, batch, docker, kubernetes, parallel, step, worker_pool

class F(FlowSpec):
    {start}
    @step
    def start(self):
        self.items = [1]
        self.next(self.work, {how})

    {work}
    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_pool_cannot_do_is_refused_by_name(flows: Flows, name: str) -> None:
    decorators, message = REFUSALS[name]
    flows.write(SMALL.format(start="", how="foreach='items'", work=decorators))
    printed = flows.run("--datastore=local", "run", fails=True)
    assert message in " ".join(printed.split())
    assert "@worker_pool of step work" in printed


def test_a_step_of_one_task_and_parallel_tasks_have_no_pool(flows: Flows) -> None:
    flows.write(SMALL.format(start="@worker_pool", how="foreach='items'", work=""))
    assert "the step is not in a foreach" in flows.run(fails=True)
    flows.write(SMALL.format(start="", how="num_parallel=2", work="@worker_pool\n    @parallel"))
    assert "the tasks of a @parallel step run at the same time" in flows.run(fails=True)


def test_an_unbounded_foreach_has_no_pool(flows: Flows) -> None:
    flows.write(
        flow("self.result = 1").replace(
            "self.items = list(range(4))",
            "from metaflow.unbounded_foreach import UnboundedForeachInput\n"
            "        self.items = UnboundedForeachInput()",
        )
    )
    assert "the items of an unbounded foreach are not known in advance" in flows.run(fails=True)


def ready(flows: Flows) -> bool:
    """Return whether both items of `LONG` run."""
    return len(list(flows.folder.glob("started-*"))) == 2


LONG = """
        try:
            open(f"started-{self.input}", "w").close()
            time.sleep(100)
        except KeyboardInterrupt:
            open(f"interrupted-{self.input}", "w").close()
            raise
        self.result = 1
"""


@pytest.mark.parametrize("mode", ["fork", "loop"])
def test_a_killed_run_leaves_nothing(flows: Flows, mode: str) -> None:
    flows.write(flow(LONG, items=2, pool=f"size=2, mode={mode!r}"))
    run = flows.start("run")
    wait_until(lambda: ready(flows))
    run.kill()
    wait_until(lambda: not processes(flows.folder))
    run.communicate()


@pytest.mark.parametrize("mode", ["fork", "loop"])
def test_ctrl_c_reaches_the_items(flows: Flows, mode: str) -> None:
    flows.write(flow(LONG, items=2, pool=f"size=2, mode={mode!r}"))
    run = flows.start("run")
    wait_until(lambda: ready(flows))
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    printed, _ = run.communicate(timeout=30)
    assert "Workflow interrupted." in printed
    assert len(list(flows.folder.glob("interrupted-*"))) == 2
    assert processes(flows.folder) == []


@pytest.mark.parametrize("mode", ["fork", "loop"])
def test_a_killed_server_takes_its_workers_along_and_is_replaced(flows: Flows, mode: str) -> None:
    flows.write(
        flow(
            """
        if current.retry_count == 0:
            open(f"started-{self.input}", "w").close()
            time.sleep(100)
        self.result = self.input
        """,
            items=2,
            pool=f"size=2, mode={mode!r}",
            decorators="@retry(times=1, minutes_between_retries=0)",
        )
    )
    run = flows.start("run")
    wait_until(lambda: ready(flows))
    subprocess.run(
        ["pkill", "-KILL", "-f", f"{server.__file__} .*", "--parent", str(run.pid)], check=True
    )
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 0, printed
    assert "error: the pool of workers ended before the item did" in printed
    assert results(flows) == [0, 1]
    assert processes(flows.folder) == []


def test_a_failed_run_resumes_with_the_items_that_are_missing(flows: Flows) -> None:
    body = """
        if self.input == 3 and not os.path.exists("resumed"):
            time.sleep(1)
            raise ValueError("not yet")
        self.result = current.origin_run_id is not None
        """
    flows.write(flow(body, pool="size=1"))
    flows.run(fails=True)
    (flows.folder / "resumed").touch()
    flows.run("resume")
    assert results(flows)[3] is True


def imported_with(module: str, show: str) -> str:
    """Return what an expression is once a module of the pool's is imported, without site."""
    code = (
        f"import sys; sys.path.append({str(Path(server.__file__).parents[3])!r})\n"
        f"before = {{*sys.modules}}; import mfimage.steps.pool.{module}; print({show})"
    )
    command = [sys.executable, "-ISE", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["client", "server"])
def test_client_and_server_need_only_the_standard_library(module: str) -> None:
    of_others = "[n for n, m in sys.modules.items() if 'site-packages' in str(m)]"
    assert imported_with(module, of_others) == "[]"


def test_the_client_imports_next_to_nothing() -> None:
    """Each item starts one: `typing` alone had doubled the time of that."""
    own = {f"mfimage{each}" for each in ("", ".steps", ".steps.pool")}
    own |= {f"mfimage.steps.pool.{each}" for each in ("client", "protocol")}
    found = imported_with("client", "*(sys.modules.keys() - before)")
    assert {*found.split()} - own == {"__future__", "_socket"}


def test_out_of_memory_is_what_the_control_group_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/system/run\n")
    (tmp_path / "system/run").mkdir(parents=True)
    (tmp_path / "system/run/memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    assert server.out_of_memory(str(tmp_path), str(own)) == 2
    own.write_text("4:memory:/docker/x\n")
    (tmp_path / "memory/docker/x").mkdir(parents=True)
    (tmp_path / "memory/docker/x/memory.oom_control").write_text("under_oom 0\noom_kill 1\n")
    assert server.out_of_memory(str(tmp_path), str(own)) == 1


def test_messages_carry_fields_and_open_files(tmp_path: Path) -> None:
    from _socket import SOCK_STREAM, socketpair

    ours, theirs = socketpair(1, SOCK_STREAM)
    big = [b"x" * 50_000, b"", "ü".encode()]
    with (tmp_path / "file").open("w") as file:
        protocol.send(ours, big, [file.fileno()])
    message = protocol.receive(theirs)
    assert message
    fields, (number,) = message
    assert fields == big
    os.write(number, b"through")
    os.close(number)
    assert (tmp_path / "file").read_text() == "through"
    ours.sendall(b"\0\0\0\x09half")
    ours.close()
    assert protocol.receive(theirs) is None
    theirs.close()
    item = protocol.TaskCommand(b"/", [b"a", b"b"], [b"K=v"])
    assert vars(protocol.TaskCommand.unpack(item.pack())) == vars(item)


def containers(run: str) -> str:
    """Return the containers of a run's pools."""
    label = f"label=io.mfimage.task={run}"
    return subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", label],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.docker
@pytest.mark.parametrize("mode", ["fork", "loop"])
def test_a_pool_in_one_container(flows: Flows, step_image: str, mode: str) -> None:
    source = flow(
        """
        if self.input == 1 and current.retry_count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.result = os.uname().nodename, os.getuid(), self.config.depth, os.environ.get("EXTRA")
        """,
        items=6,
        pool=f"size=2, mode={mode!r}",
        decorators=f"@docker(image={step_image!r}, network='none')\n"
        "@environment(vars={'EXTRA': 'x'})\n"
        "@retry(times=1, minutes_between_retries=0)",
    )
    source = source.replace("import FlowSpec", "import Config, docker, environment, FlowSpec")
    source = source.replace(
        "class F(FlowSpec):",
        "class F(FlowSpec):\n    config = Config('c', default_value={'depth': 5})",
    )
    flows.write(source)
    printed = flows.run()
    assert "error: the item's process was killed by SIGKILL" in printed
    assert "6 items done, 1 failed" in printed
    assert len(set(results(flows))) == 1
    assert results(flows)[0][1:] == (os.getuid(), 5, "x")
    shown = metadata_of(flows.tasks("work")[0])
    assert (shown["step.executor"], shown["step.image"]) == ("docker", step_image)
    assert shown["step.pool"] == f"{mode}, 2"
    assert containers(f"{flows.latest().pathspec}/work/pool") == ""


@pytest.mark.docker
def test_the_container_of_a_pool_ends_with_a_killed_run(flows: Flows, step_image: str) -> None:
    source = flow(LONG, items=2, decorators=f"@docker(image={step_image!r})")
    flows.write(source.replace("import FlowSpec", "import docker, FlowSpec"))
    run = flows.start("run")
    wait_until(lambda: ready(flows), 60)
    task = f"{flows.latest().pathspec}/work/pool"
    assert containers(task)
    run.kill()
    run.communicate()
    wait_until(lambda: not containers(task))


@pytest.mark.docker
def test_a_container_that_cannot_start_fails_the_items(flows: Flows, step_image: str) -> None:
    source = flow("self.result = 1", items=1, decorators="@docker(image='localhost:1/none:1')")
    flows.write(source.replace("import FlowSpec", "import docker, FlowSpec"))
    printed = flows.run(fails=True)
    assert "docker: Error response from daemon:" in printed
    assert "error: the pool of workers has ended\n" in printed
    assert "hint: the run's own output says why\n" in printed
