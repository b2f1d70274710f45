"""Chooses the builder of an image: the requested one, else oci unless a container must run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mfimage.errors import EngineError, OptionError
from mfimage.image.builder import AUTO, DOCKER, Builder, OnEvent
from mfimage.image.plan.options import BuildOptions
from mfimage.image.registry.location import LOCATIONS, Location


def open_builder(
    options: BuildOptions,
    *,
    system_packages: Sequence[str] = (),
    push: bool,
    secrets: Mapping[str, bytes],
    on_event: OnEvent,
    say: Callable[[str], None],
) -> Builder:
    """Return the builder for these options.

    Parameters
    ----------
    options : BuildOptions
        The options.
    system_packages : sequence of str
        Debian packages that the function needs, beside those of ``options``.
    push : bool
        Whether the image is pushed to a registry.
    secrets : mapping of str to bytes
        Credentials for the dependency step.
    on_event : callable
        Called with the progress of each step.
    say : callable
        Called with lines for people: which builder was chosen and why, which base was found.

    Raises
    ------
    EngineError
        If the docker builder is needed, and no engine answers.
    OptionError
        If the image would go nowhere, or the builder cannot do what is asked.
    """
    packages = ", ".join(dict.fromkeys((*system_packages, *options.apt)))
    if options.builder == DOCKER or (options.builder == AUTO and packages):
        if options.builder == AUTO:
            say(f"builder: docker, since system packages need a running container: {packages}")
        return _docker_builder(options, packages, secrets, on_event)
    from mfimage.image.oci.builder import OciBuilder

    builder = OciBuilder(
        compression=options.compression, compiled=options.compile, fresh=options.no_cache,
        pull=options.pull, secrets=secrets, on_event=on_event, say=say,
        cache_from=options.cache_from, cache_to=options.cache_to,
    )  # fmt: skip
    if not (push or isinstance(options.output, Location)):
        try:
            _ = builder.engine
        except EngineError as error:
            raise OptionError(
                f"the image has nowhere to go: {error.message}",
                hint="push it (--push --tag REGISTRY/NAME:TAG), write it to a file or folder "
                f"(--output {LOCATIONS}), or start Docker",
            ) from None
    return builder


def _docker_builder(
    options: BuildOptions, packages: str, secrets: Mapping[str, bytes], on_event: OnEvent
) -> Builder:
    if wanted := _needs_oci(options):
        if options.builder == DOCKER:
            raise OptionError(f"builder: docker does not do {wanted}", hint="use --builder oci")
        raise OptionError(
            f"system packages ({packages}) need the docker builder, which does not do {wanted}",
            hint="build into the engine and push or `docker save` the image",
        )
    from mfimage.image.docker_builder import DockerBuilder
    from mfimage.image.engine import Engine

    try:
        engine = Engine.connect()
    except EngineError as error:
        if options.builder == DOCKER:
            raise
        raise EngineError(
            f"system packages ({packages}) need the docker builder: {error.message}",
            hint=error.hint,
        ) from None
    return DockerBuilder(
        engine, tags=options.tags, secrets=secrets, no_cache=options.no_cache,
        pull=options.pull, on_event=on_event,
        cache_from=options.cache_from, cache_to=options.cache_to,
    )  # fmt: skip


def _needs_oci(options: BuildOptions) -> str:
    if isinstance(options.output, Location):
        return f"--output {options.output}"
    if isinstance(options.base_image, Location):
        return f"a base in {options.base_image}"
    if len(options.platforms) > 1:
        return "several platforms in one call"
    if options.compression != BuildOptions.compression:
        return f"--compression {options.compression}"
    return ""
