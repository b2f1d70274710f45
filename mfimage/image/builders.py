"""Which builder makes an image: the one that was asked for, else the one that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mfimage.errors import EngineError, OptionError
from mfimage.image.builder import AUTO, DOCKER, OCI, Builder, OnEvent
from mfimage.image.plan.options import BuildOptions, BuildxCache
from mfimage.image.registry.location import LOCATIONS, Location
from mfimage.image.registry.reference import Reference

if TYPE_CHECKING:
    from mfimage.image.docker.command import DockerCommand
    from mfimage.image.docker.engine import Engine


def open_builder(
    options: BuildOptions,
    *,
    push: bool,
    secrets: Mapping[str, bytes],
    on_event: OnEvent,
    say: Callable[[str], None],
) -> Builder:
    """Return the builder for these options.

    Parameters
    ----------
    options : BuildOptions
        What was asked.
    push : bool
        Whether the image goes to a registry.
    secrets : mapping of str to bytes
        Credentials for the dependency step.
    on_event : callable
        Called with every step.
    say : callable
        Called with which builder it is, and why, where that was left open.

    Raises
    ------
    EngineError
        When the docker builder is asked for, and there is no engine or no ``docker`` command.
    OptionError
        When the image has nowhere to go, or the builder cannot do what is asked.
    """
    found, reason = None, ""
    if options.builder == OCI:
        chosen = OCI
    else:
        found, reason = _docker(options)
        chosen = DOCKER if found else OCI
    if found is None:
        _check_goal(options, push)
    if options.builder == AUTO:
        say(f"builder: {chosen} ({reason or 'a Docker engine answers'})")
    if found is not None:
        from mfimage.image.docker.builder import DockerBuilder

        engine, command = found
        return DockerBuilder(
            engine, command, tags=options.tags, secrets=secrets,
            no_cache=options.no_cache, on_event=on_event,
            cache_from=options.cache_from, cache_to=options.cache_to,
        )  # fmt: skip
    from mfimage.image.oci.builder import OciBuilder

    return OciBuilder(
        compression=options.compression, compiled=options.compile, fresh=options.no_cache,
        secrets=secrets, on_event=on_event,
        cache_from=[_layers(cache, "cache-from") for cache in options.cache_from],
        cache_to=_layers(options.cache_to, "cache-to") if options.cache_to else None,
    )  # fmt: skip


def _docker(options: BuildOptions) -> tuple[tuple[Engine, DockerCommand] | None, str]:
    """Return an engine and the command to build with; or none, and why not."""
    if wanted := _wants_oci(options):
        if options.builder == DOCKER:
            raise OptionError(f"builder: docker does not do {wanted}", hint="use --builder oci")
        return None, f"for {wanted}"
    from mfimage.image.docker.command import DockerCommand
    from mfimage.image.docker.engine import Engine

    try:
        command = DockerCommand.find()
        return (Engine.connect(), command), ""
    except EngineError as error:
        if options.builder == DOCKER:
            raise
        return None, error.message


def _layers(cache: Reference | BuildxCache, field: str) -> Reference:
    """Return a cache of layers in a registry, the only kind that the oci builder has."""
    if isinstance(cache, BuildxCache):
        raise OptionError(
            f"{field}: {cache} is a cache of buildx, which the oci builder cannot use",
            hint="name one in a registry: NAME[:TAG], or use --builder docker",
        )
    return cache


def _wants_oci(options: BuildOptions) -> str:
    if options.output is not None:
        return f"--output {options.output}"
    if isinstance(options.base_image, Location):
        return f"a base in {options.base_image}"
    if len(options.platforms) > 1:
        return "several platforms in one call"
    if options.compression != BuildOptions.compression:
        return f"--compression {options.compression}"
    return ""


def _check_goal(options: BuildOptions, push: bool) -> None:
    """Refuse a build whose image would go nowhere: without a goal it goes into the engine."""
    if push or options.output:
        return
    from mfimage.image.docker.engine import Engine

    try:
        Engine.connect().close()
    except EngineError as error:
        raise _nowhere(error.message) from None


def _nowhere(reason: str) -> OptionError:
    return OptionError(
        f"the image has nowhere to go: {reason}",
        hint=f"--push with --tag REGISTRY/NAME:TAG, or --output docker, {LOCATIONS}; "
        "or start Docker, or point DOCKER_HOST at it",
    )
