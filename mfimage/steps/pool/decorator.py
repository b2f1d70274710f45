"""``@worker_pool``: starts a step's pool, with its first item, and sends the items there.

Metaflow imports this module with ``import metaflow``: only the standard library and Metaflow stand
at its top.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaflow.decorators import StepDecorator
from metaflow.unbounded_foreach import UBF_CONTROL, UBF_TASK
from metaflow.user_configs.config_parameters import dump_config_values

from mfimage.steps.command import run_folder
from mfimage.steps.decorators import ELSEWHERE, DockerDecorator, StepError, register_place
from mfimage.steps.pool.protocol import LOCK

HERE = Path(__file__).parent
MODES = ("fork", "loop")
CONFIG = "config.json"
CLIENT = [
    sys.executable,
    "-ISE",
    "-c",
    # Last: the standard library comes first.
    f"import sys; sys.path.append({str(HERE.parents[2])!r}); "
    "from mfimage.steps.pool.client import main; main()",
]
# Workers get 5 seconds to end.
PATIENCE = 10.0


class WorkerPoolDecorator(StepDecorator):
    """
    Run the items of a foreach in a pool of warm workers.

    Each item is a task as without a pool. Processes that have imported Metaflow and the flow once
    run them, one after the other.

    Parameters
    ----------
    size : int or str, default "auto"
        How many workers: by default one for each core, and not more than `--max-workers`, which
        limits how many items run at once.
    max_items_per_worker : int, optional
        Replace a worker after so many items.
    mode : str, default "fork"
        `fork`: each item in a child of a worker, which no other item can change. `loop`: in the
        worker itself, which is faster, but an item finds what the ones before it left in modules.
    """

    name = "worker_pool"
    defaults = {"size": "auto", "max_items_per_worker": None, "mode": "fork"}  # noqa: RUF012

    _pool: Pool | None = None

    def step_init(  # noqa: PLR0917 - Metaflow's signature
        self,
        flow: Any,
        graph: Any,
        step_name: str,
        decorators: Sequence[StepDecorator],
        environment: Any,
        flow_datastore: Any,
        logger: Any,
    ) -> None:
        """Validate the options, and refuse what a pool cannot run."""
        self._flow, self._step = flow, step_name
        self._docker = next((e for e in decorators if isinstance(e, DockerDecorator)), None)
        self._where = f"@worker_pool of step {step_name}"
        self._size = None if self.attributes["size"] == "auto" else self._positive("size", "auto")
        self._max_items = (
            None
            if self.attributes["max_items_per_worker"] in (None, "None")
            else self._positive("max_items_per_worker", None)
        )
        if self.attributes["mode"] not in MODES:
            raise StepError(
                f"{self._where}: mode={self.attributes['mode']!r} is not one of {', '.join(MODES)}."
            )
        for each in decorators:
            if each.name in ELSEWHERE:
                raise StepError(
                    f"{self._where} runs on this machine, @{each.name} does not. "
                    "Remove one of them."
                )
        if self._docker and self._docker.attributes["sandbox"]:
            raise StepError(
                f"{self._where}: the items of a pool share a container, and a sandbox is for one "
                "task. Remove @worker_pool, or sandbox= of @docker."
            )
        if graph[step_name].parallel_step:
            raise StepError(
                f"{self._where}: the tasks of a @parallel step run at the same time and talk to "
                "each other, those of a pool one after the other. Remove @worker_pool."
            )
        splits = graph[step_name].split_parents
        if graph[step_name].type == "join":  # the last one ends here
            splits = splits[:-1]
        if not any(graph[each].type == "foreach" for each in splits):
            raise StepError(
                f"{self._where}: the step is not in a foreach, so it has one task, which no pool "
                "makes faster. Put @worker_pool on a step that a foreach leads to."
            )

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: str) -> None:
        """Note the run."""
        self._run_id = run_id

    def runtime_step_cli(
        self, cli_args: Any, retry_count: int, max_user_code_retries: int, ubf_context: Any
    ) -> None:
        """Send an attempt of an item to the pool."""
        if ubf_context in (UBF_CONTROL, UBF_TASK):
            raise StepError(
                f"{self._where}: the items of an unbounded foreach are not known in advance, and "
                "do not run in a pool. Remove @worker_pool."
            )
        # What follows the last retry is the fallback of @catch, which has to run in any case.
        if retry_count <= max_user_code_retries:
            if self._pool is None or self._pool.ended():
                self._pool = self._start(cli_args)
            cli_args.entrypoint = [*self._pool.prefix, *cli_args.entrypoint]

    def _start(self, cli_args: Any) -> Pool:
        folder = run_folder() / f"pool-{self._step}"
        folder.mkdir(mode=0o700, exist_ok=True)
        options: dict[str, Any] = {
            "folder": str(folder),
            "title": f"{self._run_id}/{self._step} pool",
            "size": self._size or automatic(),
            "mode": self.attributes["mode"],
            "max_items": self._max_items,
        }
        if self._docker is None:
            return Pool(folder, [sys.executable, "-ISE", str(HERE / "server.py")], options)
        from mfimage.steps.docker import EXTENSION, DockerExecutor, container_name
        from mfimage.steps.executor import StepCommand

        executor = DockerExecutor(**self._docker.executor_options())
        mounts = [*executor.mounts, {"source": str(folder)}]
        command = StepCommand(
            argv=tuple(cli_args.get_args()),
            env={**os.environ, **cli_args.get_env()},
            cwd=os.getcwd(),  # noqa: PTH109
            pathspec=f"{self._flow.name}/{self._run_id}/{self._step}/pool",
            attempt=0,
        )
        # Metaflow has a file of the run's configs, and names it only after this hook.
        config = dump_config_values(self._flow)
        if config:
            (folder / CONFIG).write_text(json.dumps(config))
        options["inside"] = {
            "names": list(executor.names),
            "path": [*executor.path, EXTENSION],
            "config": str(folder / CONFIG) if config else None,
        }
        container = replace(executor, mounts=mounts).container(
            command, name=container_name(command)
        )
        server = f"{EXTENSION}/mfimage/steps/pool/server.py"
        return Pool(folder, [*container, "-I", server], options, env=command.env)

    def runtime_finished(self, exception: Any) -> None:
        """End the pool."""
        if self._pool:
            self._pool.end()
            self._pool = None

    def task_pre_step(  # noqa: PLR0917 - Metaflow's signature
        self,
        step_name: str,
        task_datastore: Any,
        metadata: Any,
        run_id: str,
        task_id: str,
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: Any,
        inputs: Any,
    ) -> None:
        """Register which worker runs the task."""
        if self._docker is None:  # else @docker does
            register_place(metadata, run_id, step_name, task_id, retry_count)

    def _positive(self, name: str, default: object) -> int:
        value = self.attributes[name]
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = 0
        if number < 1 or isinstance(value, (bool, float)):
            raise StepError(
                f"{self._where}: {name}={value!r} is not a positive whole number, nor {default!r}."
            )
        return number


class Pool:
    """A running server."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        options: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
    ) -> None:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)  # as long as the command has the file open
        # A session of its own: Ctrl-C reaches items through their clients, once.
        self._server = subprocess.Popen(
            [*command, json.dumps(options)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[lock],
            start_new_session=True,
        )
        os.close(lock)
        self.prefix = [*CLIENT, str(folder), sys.executable, "--"]

    def ended(self) -> bool:
        """Return whether the server has ended by itself, as if it was killed."""
        return self._server.poll() is not None

    def end(self) -> None:
        """End the server, and its workers with it."""
        assert self._server.stdin
        self._server.stdin.close()
        try:
            self._server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def automatic() -> int:
    """Return how many workers this machine and the run have use for."""
    from metaflow._vendor import click

    context = click.get_current_context(silent=True)
    cores = len(os.sched_getaffinity(0))
    return min(cores, (context and context.params.get("max_workers")) or cores)
