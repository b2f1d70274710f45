"""The checks of an image that serves HTTP."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from mfimage.errors import EngineError, OptionError
from mfimage.image.checks import client
from mfimage.image.checks.config import check_process
from mfimage.image.checks.contract import (
    check_contract,
    check_functions,
    contract_checks,
    function_path,
    replay,
    replay_as_list,
)
from mfimage.image.checks.platforms import check_platform
from mfimage.image.checks.report import Failed, Recorder, Skipped
from mfimage.image.checks.restrictions import RESTRICTIONS, check_restrictions
from mfimage.image.checks.runner import (
    Address,
    Container,
    ContainerOptions,
    ImageRunner,
    wait_for_end,
)
from mfimage.package.spec import CallableSpec
from mfimage.runtime.layout import VENV
from mfimage.runtime.records.run import Tolerance
from mfimage.runtime.serving.content import JSON
from mfimage.runtime.serving.contract import find_route
from mfimage.runtime.serving.served import Served
from mfimage.runtime.settings import Settings

_READY, _PROCESS, _EXAMPLES, _LIST, _END = "ready", "process", "examples", "list", "sigterm"

_REQUESTS = 4
# Until what was sent has arrived, and until a server has begun to shut down.
_ARRIVED, _ENDING = 0.2, 0.3
# Prints the sum of all processes' peaks, in bytes; what they share counts for each.
_RESIDENT = """
import os, re
own, found = str(os.getpid()), 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    if pid != own:
        try:
            with open(f"/proc/{pid}/status") as file:
                peak = re.search(r"VmHWM:\\s+(\\d+) kB", file.read())
        except OSError:
            continue
        found += int(peak[1]) * 1024 if peak else 0
print(found)
"""
_MARGIN = 3.0  # how long after the grace period the process may end


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How to check an image."""

    timeout: float = 60.0  # seconds until a container must be ready
    tolerance: Tolerance = field(default_factory=Tolerance)
    contracts: tuple[str, ...] = ()  # names of ``PLATFORMS`` to be checked as well


def http_checks(served: Served) -> tuple[str, ...]:
    """Return the names of the checks that need a server, except `examples`."""
    if served.several:
        own = [check.name for check in contract_checks(served) if not check.function]
        return (_READY, *served.specs, *own, _END)
    return (_READY, _LIST, *(check.name for check in contract_checks(served)), _END)


def check_server(
    runner: ImageRunner, served: Served, recorder: Recorder, options: CheckOptions
) -> None:
    """Call a server, end it, and start it with restrictions."""
    try:
        settings = Settings.from_environ(runner.info.env)
    except OptionError as error:
        recorder.add(_READY, "failed", error.message)
        return
    launch = ContainerOptions(port=settings.port)
    ready_path = find_route(served, "readyz").path
    # The one that is called at the end: whose examples there are.
    specs = list(served.specs.values())
    spec = next((each for each in specs if each.examples), specs[0])

    def works(restricted: ContainerOptions) -> str:
        with runner.start(restricted) as container:
            address = client.wait_until_ready(container, ready_path, options.timeout)
            for each in specs:
                with suppress(Skipped):
                    replay(address, each, options.tolerance)
            return "works"

    with ExitStack() as stack:
        found: list[tuple[Container, Address]] = []

        def ready() -> str:
            container = stack.enter_context(runner.start(launch))
            started = time.monotonic()
            address = client.wait_until_ready(container, ready_path, options.timeout)
            recorder.measured["start_seconds"] = round(time.monotonic() - started, 3)
            found.append((container, address))
            return f"GET {ready_path}: 200"

        if not recorder.run(_READY, ready):
            rest = [name for name in http_checks(served) if name != _READY]
            examples = () if served.several else (_EXAMPLES,)
            recorder.skip((_PROCESS, *examples, *rest, *RESTRICTIONS), "it was never ready")
            return
        container, address = found[0]
        tolerance = options.tolerance
        recorder.run(_PROCESS, lambda: check_process(container))
        if served.several:
            works_unrestricted = check_functions(recorder, address, served, tolerance)
        else:
            works_unrestricted = recorder.run(_EXAMPLES, lambda: replay(address, spec, tolerance))
            recorder.run(_LIST, lambda: replay_as_list(address, spec, tolerance))
        check_contract(recorder, address, served)
        if memory := resident_bytes(container):
            recorder.measured["memory_bytes"] = memory
        recorder.run(_END, lambda: check_end(container, address, spec, settings))
    for name in options.contracts:
        check_platform(
            runner, served, recorder, name, timeout=options.timeout, tolerance=options.tolerance
        )
    if works_unrestricted:
        check_restrictions(recorder, launch, works)
    else:
        recorder.skip(tuple(RESTRICTIONS), "without them it does not answer as recorded, either")


def resident_bytes(container: Container) -> int | None:
    """Return how much memory all processes of a container had resident at most."""
    # The image has Python, and no other program for certain.
    try:
        return int(container.execute((f"{VENV}/bin/python", "-I", "-c", _RESIDENT)))
    except (EngineError, ValueError):
        return None


# Shutdown


def check_end(
    container: Container, address: Address, spec: CallableSpec, settings: Settings
) -> str:
    """Send requests up to the last byte, SIGTERM, then the rest when the sockets are closed."""
    # However fast the function is, these are in flight. All must be answered, and the container
    # must end with exit code 0 within the grace period.
    # Without examples the function may refuse the record or fail on it: that is an answer, too.
    body = json.dumps(spec.examples[0].input).encode() if spec.examples else b"{}"
    path = function_path(spec, "record")
    requests = [_Unfinished(address, path, body) for _ in range(_REQUESTS)]
    try:
        time.sleep(_ARRIVED)
        signalled = time.monotonic()
        container.terminate()
        # Where the grace period is shorter than the drain, half of it.
        time.sleep(min(settings.drain + _ENDING, settings.grace / 2))
        responses = [request.finish() for request in requests]
    finally:
        for request in requests:
            request.close()
    code = wait_for_end(container, settings.grace + _MARGIN - (time.monotonic() - signalled))
    took = time.monotonic() - signalled
    answered = [each for each in responses if isinstance(each, client.ServerResponse)]
    if lost := [each for each in responses if not isinstance(each, client.ServerResponse)]:
        text = f"{len(lost)} of {_REQUESTS} requests in flight had no answer: {lost[0]!r}"
        raise Failed(client.with_log(text, container))
    answers = () if spec.examples else (500,)
    if broken := [each for each in answered if each.status >= 500 and each.status not in answers]:
        raise Failed(f"{len(broken)} of {_REQUESTS} requests in flight: {broken[0].problem}")
    if code is None:
        raise Failed(
            f"still running {took:.1f} s after SIGTERM; MFIMAGE_GRACE is {settings.grace:g}"
        )
    if code:
        raise Failed(client.with_log(f"it ended with exit code {code} after SIGTERM", container))
    return f"{_REQUESTS} requests in flight answered, ended after {took:.1f} s"


class _Unfinished:
    """A request without its last byte."""

    def __init__(self, address: Address, path: str, body: bytes) -> None:
        self._last = body[-1:]
        self._connection = http.client.HTTPConnection(*address, timeout=client.RESPONSE_TIMEOUT)
        self._connection.putrequest("POST", path)
        self._connection.putheader("Content-Type", JSON)
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body[:-1])

    def finish(self) -> client.ServerResponse | Exception:
        """Send the last byte; return the response, or why there was none."""
        try:
            self._connection.send(self._last)
            return client.read_response(self._connection)
        except (OSError, http.client.HTTPException) as error:
            return error

    def close(self) -> None:
        self._connection.close()
