"""All checks of an image, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name

import docker

from mfimage.errors import EngineError, OptionError
from mfimage.image.checks import config
from mfimage.image.checks.report import Check, Recorder, Report
from mfimage.image.checks.runner import ImageRunner, open_image
from mfimage.image.checks.server import CheckOptions
from mfimage.image.checks.step import check_step
from mfimage.image.docker.engine import connect
from mfimage.image.plan.labels import TARGET
from mfimage.image.targets import DEFAULT_TARGET, TARGETS
from mfimage.image.targets.step import StepTarget
from mfimage.runtime.serving.served import Served

_DEFAULTS = CheckOptions()


def check_image(
    image: str,
    options: CheckOptions = _DEFAULTS,
    *,
    say: Callable[[str], None] = lambda _: None,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Report:
    """Run an image that the engine has or can pull, or that a `Location` names, and check it."""
    # ``say`` receives progress, a line at a time; ``on_check`` each check that was made.
    recorder = Recorder(on_check)
    with open_image(_connect(image), image, say=say) as runner:
        target = runner.info.labels.get(TARGET)
        if options.contracts and target not in (None, DEFAULT_TARGET):
            raise OptionError(
                f"contract: {image} is an image for {target}, which serves no HTTP by itself",
                hint=f"build it with --target {DEFAULT_TARGET}",
            )
        files = (config.SPEC_FILE, config.LIST_FILE)
        if target is None and not any(map(runner.read, files)):
            raise OptionError(
                f"image: {image} holds no function: there is no {config.SPEC_FILE} in it",
                hint="name one that `mfimage build` made",
            )
        say(f"testing {image} by {runner.name}")
        if target == StepTarget.name:
            _check_configuration(runner, recorder)
            check_step(runner, recorder, options)
        elif (served := _check_what_it_says(runner, recorder)) is not None:
            found = TARGETS.get(target or DEFAULT_TARGET, TARGETS[DEFAULT_TARGET])
            resolve_name(found.check)(runner, served, recorder, options)
    checks = tuple(recorder.checks)
    return Report(
        image=image,
        id=runner.info.id,
        runner=runner.name,
        checks=checks,
        measured=recorder.measured,
    )


def _check_what_it_says(runner: ImageRunner, recorder: Recorder) -> Served | None:
    """Check what can be read; return the functions, if they are there."""
    found: list[Served] = []

    def function() -> str:
        found.append(config.read_served(runner))
        if found[0].several:
            return found[0].title
        (spec,) = found[0].specs.values()
        return f"{spec.name}, {spec.digest[:19]}"

    info = runner.info
    recorder.run("function", function)
    if found:
        lock = runner.read(config.LOCK_FILE)
        recorder.run("labels", lambda: config.check_labels(info, found[0], lock))
    _check_configuration(runner, recorder)
    return found[0] if found else None


def _check_configuration(runner: ImageRunner, recorder: Recorder) -> None:
    recorder.run("credentials", lambda: config.check_credentials(runner.info))
    recorder.run("user", lambda: config.check_user(runner.info))


def _connect(image: str) -> docker.APIClient:
    try:
        return connect()
    except EngineError as error:
        raise EngineError(
            f"{image} cannot be run: {error.message}",
            hint="mfimage test runs an image in a Docker engine: start Docker, or point "
            "DOCKER_HOST or `docker context use` at a running engine",
        ) from None
