"""Chooses the builder of an image: the requested one, else oci unless a container must run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mfimage.errors import EngineError, OptionError
from mfimage.image.builder import AUTO, DOCKER, Builder, OnEvent
from mfimage.image.plan.options import BuildOptions, BuildxCache
from mfimage.image.registry.location import LOCATIONS, Location
from mfimage.image.registry.reference import Reference


def open_builder(
    options: BuildOptions,
    *,
    system_packages: Sequence[str] = (),
    push: bool,
    secrets: Mapping[str, bytes],
    on_event: OnEvent,
    say: Callable[[str], None],
) -> Builder:
    """Return the builder for these options; events and lines for people go to the callables."""
    # ``system_packages`` are what the function needs, besides those of ``options``.
    why = _needs_docker(options, system_packages) if options.builder == AUTO else ""
    if why:
        say(f"builder: docker, since {why}")
    if why or options.builder == DOCKER:
        return _docker_builder(options, why, secrets, on_event)
    from mfimage.image.oci.builder import OciBuilder
    from mfimage.image.oci.compression import NONE

    # What stays in the engine needs no compression.
    elsewhere = push or isinstance(options.output, Location) or options.cache_from
    builder = OciBuilder(
        compression=options.compression if elsewhere or options.cache_to else NONE,
        compiled=options.compile, fresh=options.no_cache,
        pull=options.pull, secrets=secrets, on_event=on_event, say=say,
        cache_from=[_layers(cache, "cache-from") for cache in options.cache_from],
        cache_to=_layers(options.cache_to, "cache-to") if options.cache_to else None,
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
    options: BuildOptions, why: str, secrets: Mapping[str, bytes], on_event: OnEvent
) -> Builder:
    if wanted := _needs_oci(options):
        if why:
            raise OptionError(
                f"builder: {why}, and docker does not do {wanted}",
                hint="build into the engine, and push or `docker save` the image",
            )
        raise OptionError(f"builder: docker does not do {wanted}", hint="use --builder oci")
    from mfimage.image.docker.builder import DockerBuilder
    from mfimage.image.docker.command import DockerCommand
    from mfimage.image.docker.engine import Engine

    try:
        command = DockerCommand.find()
        engine = Engine.connect()
    except EngineError as error:
        if not why:
            raise
        raise EngineError(f"builder: {why}, but {error.message}", hint=error.hint) from None
    return DockerBuilder(
        engine, command, tags=options.tags, secrets=secrets, no_cache=options.no_cache,
        pull=options.pull, on_event=on_event,
        cache_from=options.cache_from, cache_to=options.cache_to,
    )  # fmt: skip


def _layers(cache: Reference | BuildxCache, field: str) -> Reference:
    """Return a cache of layers in a registry, the only kind that the oci builder has."""
    if isinstance(cache, BuildxCache):
        raise OptionError(
            f"{field}: {cache} is a cache of buildx, which the oci builder cannot use",
            hint="name one in a registry: NAME[:TAG], or use --builder docker",
        )
    return cache


def _needs_docker(options: BuildOptions, system_packages: Sequence[str]) -> str:
    """Return why only docker can build this; empty if oci can."""
    if packages := dict.fromkeys((*system_packages, *options.apt)):
        return f"system packages need a running container: {', '.join(packages)}"
    caches = (*options.cache_from, options.cache_to)
    found = next((cache for cache in caches if isinstance(cache, BuildxCache)), None)
    return f"{found} is a cache of buildx" if found else ""


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
