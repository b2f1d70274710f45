"""Commands that write manifests for KubeRay."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli.flags import options

if TYPE_CHECKING:
    from mfimage.manifests.kuberay.options import ClusterOptions
    from mfimage.manifests.kuberay.parts import RayImage

_image_flags = options(
    click.option("--ray-version", metavar="VERSION", help="Of an image that cannot be read here."),
    click.option("--function", metavar="NAME", help="In an image that cannot be read here."),
    click.option(
        "--function-digest", metavar="sha256:HEX", help="In an image that cannot be read here."
    ),
)
_object_flags = options(
    click.option("--name", help="Name of the resource; the function's by default."),
    click.option("--namespace", help="Namespace; kubectl's by default."),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="Label of the resource."),
    click.option("--service-account", metavar="NAME", help="What the pods run as."),
    click.option("--image-pull-secret", multiple=True, metavar="NAME", help="Secret to pull with."),
    click.option(
        "--image-pull-policy", metavar="POLICY",
        help="Always, IfNotPresent or Never; IfNotPresent for an image by digest, else Always.",
    ),
    click.option(
        "--run-as-user", default="1000", metavar="UID|any", help="any: as the cluster chooses."
    ),
)  # fmt: skip
_size_flags = options(
    click.option("--replicas", type=int, metavar="N", help="Worker pods; 1."),
    click.option("--min-replicas", type=int, metavar="N", help="As few worker pods."),
    click.option("--max-replicas", type=int, metavar="N", help="As many worker pods."),
    click.option("--autoscaling", is_flag=True, help="Let Ray start and stop workers."),
    click.option(
        "--idle-timeout", type=int, default=60, metavar="SECONDS", show_default=True,
        help="Until Ray stops an idle worker.",
    ),
    click.option("--worker-cpu", default="2", metavar="CPUS", show_default=True),
    click.option("--worker-memory", default="4Gi", metavar="SIZE", show_default=True),
    click.option("--worker-gpus", type=int, default=0, metavar="N", show_default=True),
    click.option("--head-cpu", default="2", metavar="CPUS", show_default=True),
    click.option("--head-memory", default="4Gi", metavar="SIZE", show_default=True),
    click.option("--head-gpus", type=int, default=0, metavar="N", show_default=True),
    click.option("--gpu-resource", default="nvidia.com/gpu", metavar="NAME", show_default=True),
)  # fmt: skip
_place_flags = options(
    click.option("--node-selector", multiple=True, metavar="NAME=VALUE", help="For every pod."),
    click.option("--worker-node-selector", multiple=True, metavar="NAME=VALUE"),
    click.option(
        "--toleration", multiple=True, metavar="KEY[=VALUE][:EFFECT]", help="For every pod."
    ),
)
_env_flags = options(
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable, literally."),
    click.option(
        "--env-from-secret", multiple=True, metavar="NAME=SECRET:KEY", help="Variable of a Secret."
    ),
    click.option(
        "--auth", type=click.Choice(["token", "disabled"]), default="token", show_default=True,
        help="Whether who talks to Ray needs a token.",
    ),
    click.option("--auth-secret", metavar="NAME", help="Secret with the token; KubeRay makes one."),
    click.option(
        "--python-match", type=click.Choice(["patch", "minor"]), default="patch", show_default=True,
        help="How alike the Python of a driver from elsewhere must be.",
    ),
)  # fmt: skip
_cluster_flags = options(
    click.argument("image"), _image_flags, _object_flags, _size_flags, _place_flags, _env_flags
)


@click.group()
def kuberay() -> None:
    """Write manifests for an image of target ray; `| kubectl apply -f -` runs it on Kubernetes."""


@kuberay.command()
@_cluster_flags
def raycluster(image: str, **given: Any) -> None:
    """Write a RayCluster: nodes that carry the function and wait for work."""
    from mfimage.manifests.kuberay.manifest import raycluster as write

    click.echo(write(*_parts(image, given)), nl=False)


@kuberay.command()
@_cluster_flags
@click.option("--input", required=True, metavar="URL", help="Records: a file, folder or glob.")
@click.option("--output", required=True, metavar="URL", help="Folder for the results.")
@click.option("--format", metavar="NAME", help="Of the input: jsonl, avro or parquet; by suffix.")
@click.option("--output-format", metavar="NAME", help="Of the results; the input's.")
@click.option("--batch-size", type=int, metavar="N", help="Records sent together.")
@click.option("--num-actors", type=int, metavar="N", help="Copies of the function; as many as fit.")
@click.option("--num-cpus", type=float, default=1.0, metavar="N", help="CPUs for a copy; 1.")
@click.option("--num-gpus", type=float, metavar="N", help="GPUs for a copy; 1 where there are.")
@click.option("--allow-errors", is_flag=True, help="Records without a result are no failure.")
@click.option("--ttl", type=int, default=300, metavar="SECONDS", show_default=True,
              help="That the cluster and its logs outlive the job.")  # fmt: skip
@click.option("--backoff-limit", type=int, default=1, metavar="N", show_default=True,
              help="New attempts, each on a new cluster.")  # fmt: skip
@click.option("--deadline", type=int, metavar="SECONDS", help="Until the job is given up.")
def rayjob(image: str, **given: Any) -> None:
    """Write a RayJob: a cluster, a batch on it, and the end of both."""
    from mfimage.manifests.kuberay.manifest import rayjob as write
    from mfimage.manifests.kuberay.work import JobOptions

    job = JobOptions(**{each.name: given[each.name] for each in fields(JobOptions)})
    click.echo(write(*_parts(image, given), job), nl=False)


@kuberay.command()
@_cluster_flags
@click.option("--serve-replicas", type=int, metavar="N", help="Copies; one for each worker.")
@click.option("--serve-min-replicas", type=int, metavar="N", help="As few copies.")
@click.option("--serve-max-replicas", type=int, metavar="N", help="As many copies.")
@click.option("--serve-ongoing-requests", type=float, metavar="N",
              help="Requests at once in a copy, above which there will be another.")  # fmt: skip
@click.option("--serve-cpus", type=float, default=1.0, metavar="N", help="CPUs for a copy; 1.")
@click.option("--serve-gpus", type=float, metavar="N", help="GPUs for a copy; 1 where there are.")
def rayservice(image: str, **given: Any) -> None:
    """Write a RayService: a cluster that answers POST /FUNCTION."""
    from mfimage.manifests.kuberay.manifest import rayservice as write
    from mfimage.manifests.kuberay.work import ServiceOptions

    service = ServiceOptions(
        **{each.name: given[f"serve_{each.name}"] for each in fields(ServiceOptions)}
    )
    click.echo(write(*_parts(image, given), service), nl=False)


def _parts(image: str, given: dict[str, Any]) -> tuple[RayImage, ClusterOptions]:
    from mfimage.cli.console import note
    from mfimage.manifests.kuberay.arguments import cluster_options
    from mfimage.manifests.kuberay.image import Known, read_ray_image

    # First what costs nothing to find wrong.
    cluster = cluster_options(given)
    known = Known(
        ray_version=given["ray_version"],
        function=given["function"],
        function_digest=given["function_digest"],
    )
    return read_ray_image(image, known, say=note), cluster
