"""The checks of an image for Ray."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from mfimage.image.checks.client import wait_until_ready, with_log
from mfimage.image.checks.config import check_process
from mfimage.image.checks.contract import NO_EXAMPLES
from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.restrictions import RESTRICTIONS, check_restrictions
from mfimage.image.checks.runner import Container, ContainerOptions, ImageRunner, wait_for_end
from mfimage.image.checks.server import CheckOptions, http_checks
from mfimage.runtime.records.run import Tolerance
from mfimage.runtime.serving.served import Served

# KubeRay starts Ray by bash, and old versions probe by wget.
PROGRAMS = ("bash", "python", "ray", "wget")
_FIND = 'for name do command -v "$name" >/dev/null || echo "$name"; done'
# Each function in a process of its own; what one prints names it.
_EACH = 'for name do {} --function "$name"; done'
# `/api/healthz` is the agent's, on another port.
_DASHBOARD, _HEALTH = 8265, "/api/gcs_healthz"
_HEAD, _PROCESS = "head", "process"


def check_ray(
    runner: ImageRunner, served: Served, recorder: Recorder, options: CheckOptions
) -> None:
    """Check what KubeRay needs, and that each function works."""
    timeout = options.timeout
    command = check_command(runner.info.entrypoint, options.tolerance)
    if served.several:
        command = ("/bin/sh", "-c", _EACH.format(shlex.join(command)), "sh", *served.specs)
    launch = ContainerOptions(entrypoint=command)

    def works(launch: ContainerOptions) -> str:
        return check_functions(runner, served, launch, timeout)

    recorder.run("programs", lambda: check_programs(runner, timeout))
    if recorder.run("examples", lambda: works(launch)):
        check_restrictions(recorder, launch, works)
    else:
        recorder.skip(tuple(RESTRICTIONS), "without them it does not work, either")
    check_head(runner, recorder, timeout)
    recorder.skip(http_checks(served), "an image for Ray serves no HTTP until Ray Serve is started")


def check_programs(runner: ImageRunner, timeout: float) -> str:
    """Look for the programs that KubeRay calls by name."""
    command = ("/bin/sh", "-c", _FIND, "sh", *PROGRAMS)
    with runner.start(ContainerOptions(entrypoint=command)) as container:
        code = wait_for_end(container, timeout)
        missing = container.log(None).split()
    if code:
        raise Failed(f"/bin/sh ended with exit code {code}: {' '.join(missing)}")
    if missing:
        raise Failed(f"not on PATH: {', '.join(missing)}")
    return ", ".join(PROGRAMS)


def check_functions(
    runner: ImageRunner, served: Served, launch: ContainerOptions, timeout: float
) -> str:
    """Let the image load its functions and replay their examples."""
    with runner.start(launch) as container:
        timeout *= len(served.specs)
        code = wait_for_end(container, timeout)
        if code is None:
            raise Failed(with_log(f"not done within {timeout:g} s", container))
        found = _reports(container.log(None))
        lost = [name for name, spec in served.specs.items() if spec.digest not in found]
        if not found or (lost and served.several):
            which = f"{', '.join(lost)} did not load; " if served.several else ""
            raise Failed(with_log(f"{which}it ended with exit code {code}", container))
    if lost:
        wanted = served.specs[lost[0]].digest
        raise Failed(f"it loads the function {next(iter(found))}, not {wanted}")
    for name, spec in served.specs.items():
        if differences := found[spec.digest]["differences"]:
            first, where = differences[0], f"{name}, " if served.several else ""
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            text = f"example {first['example']}: {first['path']}: {first['message']}"
            raise Failed(f"{where}{text}{more}")
    count = sum(report["examples"] for report in found.values())
    if not count:
        raise Skipped(f"it loads; of the examples, {NO_EXAMPLES}")
    return f"{count} examples"


def check_command(entrypoint: Sequence[str], tolerance: Tolerance) -> tuple[str, ...]:
    """Return the command with which an image checks its function."""
    # Images of older versions do not have these options.
    rtol = [] if tolerance.relative == Tolerance.relative else [f"--rtol={tolerance.relative!r}"]
    atol = [] if tolerance.absolute == Tolerance.absolute else [f"--atol={tolerance.absolute!r}"]
    return (*entrypoint, "check", *rtol, *atol)


def check_head(runner: ImageRunner, recorder: Recorder, timeout: float) -> None:
    """Start a head with the image's own command; wait until it is healthy."""
    with ExitStack() as stack:
        started: list[Container] = []

        def head() -> str:
            started.append(stack.enter_context(runner.start(ContainerOptions(port=_DASHBOARD))))
            wait_until_ready(started[0], _HEALTH, timeout)
            return f"GET {_HEALTH}: 200"

        if recorder.run(_HEAD, head):
            recorder.run(_PROCESS, lambda: check_process(started[0]))
        else:
            recorder.skip((_PROCESS,), "the head was never healthy")


def _reports(log: str) -> dict[str, dict[str, Any]]:
    """Find the reports of ``check`` among what the functions printed, by the functions' digests."""
    reports = {}
    for line in log.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and {"digest", "examples", "differences"} <= found.keys():
            reports[found["digest"]] = found
    return reports
