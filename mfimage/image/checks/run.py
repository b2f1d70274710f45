"""All checks of an image, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mfimage.errors import EngineError, OptionError, ReferenceNotFound
from mfimage.image.checks import config
from mfimage.image.checks.docker_runner import open_docker
from mfimage.image.checks.ray import check_ray
from mfimage.image.checks.report import Check, Recorder, Report
from mfimage.image.checks.runc_runner import Tools, find_tools, open_runc
from mfimage.image.checks.runner import Runner
from mfimage.image.checks.server import CheckOptions, check_server
from mfimage.image.engine_connect import connect
from mfimage.image.find.places import ENGINE, FILES, FoundImage, find_image
from mfimage.image.plan.labels import TARGET
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
        Told of what happens, a line each.
    on_check : callable
        Told of each check that was made.

    Raises
    ------
    EngineError
        If nothing here can run it.
    MfimageError
        If there is no such image, or it is none of a function.
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


def _check_what_it_says(runner: Runner, recorder: Recorder) -> FunctionSpec | None:
    """Check what can be read; return the function, if it is there."""
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
def _runner(image: str, say: Callable[[str], None]) -> Iterator[Runner]:
    """Open the image where it can be run."""
    found: FoundImage | None
    try:
        found = find_image(image, places=(FILES, ENGINE))
    except ReferenceNotFound:
        found = None  # the engine can pull it
    with ExitStack() as stack:
        runner: Runner
        try:
            api = connect()
        except EngineError as error:
            found, tools = _without_engine(image, found, error)
            say(f"{error.message}; {image} is unpacked")
            runner = stack.enter_context(open_runc(found, tools))
        else:
            runner = stack.enter_context(open_docker(api, image, found, say=say))
        yield runner


def _without_engine(
    image: str, found: FoundImage | None, error: EngineError
) -> tuple[FoundImage, Tools]:
    """Return the image, and the tools that unpack and run it instead of an engine."""
    tools = find_tools()
    if found is None or found.place is not FILES:
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
    return found, tools
