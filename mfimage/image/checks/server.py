"""What there is to check of an image that serves HTTP."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from mfimage.errors import OptionError
from mfimage.image.checks.client import wait_until_ready
from mfimage.image.checks.config import check_process
from mfimage.image.checks.ending import check_end
from mfimage.image.checks.examples import replay, replay_as_list
from mfimage.image.checks.probes import call_probes, probes
from mfimage.image.checks.report import Recorder
from mfimage.image.checks.restrictions import RESTRICTIONS, check_restrictions
from mfimage.image.checks.runner import Address, Container, Launch, Runner
from mfimage.package.spec import FunctionSpec
from mfimage.runtime.records.run import Tolerance
from mfimage.runtime.settings import Settings

READY_PATH = "/readyz"
_READY, _PROCESS, _EXAMPLES, _LIST, _END = "ready", "process", "examples", "list", "sigterm"


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How to check an image.

    Attributes
    ----------
    timeout : float
        Seconds that a container may take until it is ready.
    tolerance : Tolerance
        How far floating-point numbers may be from those recorded.
    """

    timeout: float = 60.0
    tolerance: Tolerance = field(default_factory=Tolerance)


def http_checks(spec: FunctionSpec) -> tuple[str, ...]:
    """Return the names of the checks that need a server, but for `examples`."""
    return (_READY, _LIST, *(probe.name for probe in probes(spec)), _END)


def check_server(
    runner: Runner, spec: FunctionSpec, recorder: Recorder, options: CheckOptions
) -> None:
    """Call a server as it is, end it, and start it with less."""
    try:
        settings = Settings.from_environ(runner.info.env)
    except OptionError as error:
        recorder.add(_READY, "failed", error.message)
        return
    launch = Launch(port=settings.port)

    def works(restricted: Launch) -> str:
        with runner.start(restricted) as container:
            address = wait_until_ready(container, READY_PATH, options.timeout)
            return replay(address, spec, options.tolerance)

    with ExitStack() as stack:
        found: list[tuple[Container, Address]] = []

        def ready() -> str:
            container = stack.enter_context(runner.start(launch))
            address = wait_until_ready(container, READY_PATH, options.timeout)
            found.append((container, address))
            return f"GET {READY_PATH}: 200"

        if not recorder.run(_READY, ready):
            rest = [name for name in http_checks(spec) if name != _READY]
            recorder.skip((_PROCESS, _EXAMPLES, *rest, *RESTRICTIONS), "it was never ready")
            return
        container, address = found[0]
        tolerance = options.tolerance
        recorder.run(_PROCESS, lambda: check_process(container))
        answers = recorder.run(_EXAMPLES, lambda: replay(address, spec, tolerance))
        recorder.run(_LIST, lambda: replay_as_list(address, spec, tolerance))
        call_probes(recorder, address, spec)
        recorder.run(_END, lambda: check_end(container, address, spec, settings))
    if answers:
        check_restrictions(recorder, launch, works)
    else:
        recorder.skip(tuple(RESTRICTIONS), "it does not answer as recorded without them, either")
