"""All checks of an image, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mfimage.errors import EngineError, OptionError
from mfimage.image.checks import config
from mfimage.image.checks.docker_runner import open_docker
from mfimage.image.checks.ray import check_ray
from mfimage.image.checks.report import Check, Recorder, Report
from mfimage.image.checks.runc_runner import Tools, find_tools, open_runc
from mfimage.image.checks.runner import ImageRunner
from mfimage.image.checks.server import CheckOptions, check_server
from mfimage.image.engine_connect import connect
from mfimage.image.plan.labels import TARGET
from mfimage.image.registry.location import Location, parse_location
from mfimage.package.spec import FunctionSpec

_DEFAULTS = CheckOptions()


def check_image(
    image: str,
    options: CheckOptions = _DEFAULTS,
    *,
    say: Callable[[str], None] = lambda _: None,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Report:
    """Run an image and check it.

    Parameters
    ----------
    image : str
        A name or ID that the Docker engine knows or can pull; or ``oci:DIR``,
        ``oci-archive:FILE``, ``docker-archive:FILE``.
    options : CheckOptions
        How.
    say : callable
        Called with what happens, a line each.
    on_check : callable
        Called with each check.

    Raises
    ------
    EngineError
        If it cannot be run here.
    MfimageError
        If there is no such image, or it has no function.
    """
    recorder = Recorder(on_check)
    with _runner(image, say) as runner:
        target = runner.info.labels.get(TARGET)
        if target is None and runner.read(config.SPEC_FILE) is None:
            raise OptionError(
                f"image: {image} holds no function: there is no {config.SPEC_FILE} in it",
                hint="name one that `mfimage build` made",
            )
        say(f"testing {image} by {runner.name}")
        spec = _check_what_it_says(runner, recorder)
        if spec is not None:
            check = check_ray if target == "ray" else check_server
            check(runner, spec, recorder, options)
        identity, name = runner.info.id, runner.name
    return Report(image=image, id=identity, runner=name, checks=recorder.checks)


def _check_what_it_says(runner: ImageRunner, recorder: Recorder) -> FunctionSpec | None:
    """Check the configuration; return the function, if there is one."""
    found: list[FunctionSpec] = []

    def function() -> str:
        found.append(config.read_spec(runner))
        return f"{found[0].name}, {found[0].digest[:19]}"

    info = runner.info
    recorder.run("function", function)
    if found:
        lock = runner.read(config.LOCK_FILE)
        recorder.run("labels", lambda: config.check_labels(info, found[0], lock))
    recorder.run("credentials", lambda: config.check_credentials(info))
    recorder.run("user", lambda: config.check_user(info))
    return found[0] if found else None


@contextmanager
def _runner(image: str, say: Callable[[str], None]) -> Iterator[ImageRunner]:
    """Open the image where it can be run."""
    location = parse_location(image, field="image")
    with ExitStack() as stack:
        runner: ImageRunner
        try:
            api = connect()
        except EngineError as error:
            place, tools = _without_engine(image, location, error)
            say(f"{error.message}; {image} is unpacked")
            runner = stack.enter_context(open_runc(place, tools))
        else:
            runner = stack.enter_context(open_docker(api, image, location, say=say))
        yield runner


def _without_engine(
    image: str, location: Location | None, error: EngineError
) -> tuple[Location, Tools]:
    """Return where the image is, and what unpacks and runs it instead of an engine."""
    tools = find_tools()
    if location is None:
        raise EngineError(
            f"{image} cannot be run: {error.message}",
            hint="start an engine; without one, name an image in a folder, as oci:DIR, "
            "where runc and umoci are",
        )
    if tools is None:
        raise EngineError(
            f"{image} cannot be run: {error.message}, and runc and umoci are not here",
            hint="start an engine, or install them: apt-get install runc umoci",
        )
    return location, tools
