"""Commands that write manifests for KubeRay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli.flags import Command, options
from mfimage.manifests.kuberay.options import ClusterOptions, Stated
from mfimage.manifests.kuberay.work import JobOptions, ServiceOptions
from mfimage.manifests.options import flags, read_options

if TYPE_CHECKING:
    from mfimage.manifests.kuberay.image import RayImage


def _flags(kind: type, prefix: str = "") -> Callable[[Command], Command]:
    """Return a decorator that adds a flag for each field of options."""
    made = []
    for names, about in flags(kind, prefix):
        if choices := about.pop("choices"):
            about["type"] = click.Choice(choices)
        made.append(click.option(*names, show_default=True, **about))
    return options(*made)


_cluster_flags = options(click.argument("image"), _flags(Stated), _flags(ClusterOptions))


@click.group()
def kuberay() -> None:
    """Write manifests for an image of target ray; `| kubectl apply -f -` runs it on Kubernetes."""


@kuberay.command()
@_cluster_flags
def raycluster(image: str, **given: Any) -> None:
    """Write a RayCluster, whose nodes hold the function and wait for work."""
    from mfimage.manifests.kuberay.manifest import raycluster as write

    click.echo(write(*_image_and_cluster(image, given)), nl=False)


@kuberay.command()
@_cluster_flags
@_flags(JobOptions)
def rayjob(image: str, **given: Any) -> None:
    """Write a RayJob, which starts a cluster, runs a batch on it, and stops it."""
    from mfimage.manifests.kuberay.manifest import rayjob as write

    job = read_options(JobOptions, given)
    click.echo(write(*_image_and_cluster(image, given), job), nl=False)


@kuberay.command()
@_cluster_flags
@_flags(ServiceOptions, "serve_")
def rayservice(image: str, **given: Any) -> None:
    """Write a RayService, a cluster that serves POST /FUNCTION."""
    from mfimage.manifests.kuberay.manifest import rayservice as write

    service = read_options(ServiceOptions, given, "serve_")
    click.echo(write(*_image_and_cluster(image, given), service), nl=False)


def _image_and_cluster(image: str, given: dict[str, Any]) -> tuple[RayImage, ClusterOptions]:
    from mfimage.cli.console import say
    from mfimage.manifests.kuberay.image import read_ray_image

    # Options first: checking them takes no time.
    cluster = read_options(ClusterOptions, given)
    return read_ray_image(image, read_options(Stated, given), say=say), cluster
