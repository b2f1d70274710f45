"""Commands that write manifests for KubeRay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli.flags import options
from mfimage.errors import OptionError

if TYPE_CHECKING:
    from mfimage.manifests.kuberay.image import RayImage
    from mfimage.manifests.kuberay.options import ClusterOptions, SecretRef, Toleration

_AS_GIVEN = (
    "name", "namespace", "gpu_resource", "replicas", "min_replicas", "max_replicas", "autoscaling",
    "idle_timeout", "service_account", "image_pull_policy", "auth", "auth_secret", "python_match",
)  # fmt: skip

_image_flags = options(
    click.option("--ray-version", metavar="VERSION", help="Ray in an image that is not found."),
    click.option("--function", metavar="NAME", help="Function in an image that is not found."),
    click.option(
        "--function-digest", metavar="sha256:HEX",
        help="Digest of the function in an image that is not found.",
    ),
)  # fmt: skip
_object_flags = options(
    click.option("--name", help="Name of the resource; the function's by default."),
    click.option("--namespace", help="Namespace; kubectl's by default."),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="Label of the resource."),
    click.option("--service-account", metavar="NAME", help="Service account of the pods."),
    click.option("--image-pull-secret", multiple=True, metavar="NAME", help="Secret to pull with."),
    click.option(
        "--image-pull-policy", metavar="POLICY",
        help="Always, IfNotPresent or Never; by default IfNotPresent for an image by digest, "
        "else Always.",
    ),
    click.option(
        "--run-as-user", default="1000", metavar="UID|any", show_default=True,
        help="User of the pods; any: as the cluster chooses.",
    ),
)  # fmt: skip
_size_flags = options(
    click.option("--replicas", type=int, metavar="N", help="Worker pods; 1 by default."),
    click.option("--min-replicas", type=int, metavar="N", help="Minimum of worker pods."),
    click.option("--max-replicas", type=int, metavar="N", help="Maximum of worker pods."),
    click.option("--autoscaling", is_flag=True, help="Let Ray start and stop workers."),
    click.option(
        "--idle-timeout", type=int, default=60, metavar="SECONDS", show_default=True,
        help="Time until Ray stops an idle worker.",
    ),
    click.option("--worker-cpu", default="2", metavar="CPUS", show_default=True,
                 help="CPUs of each worker."),
    click.option("--worker-memory", default="4Gi", metavar="SIZE", show_default=True,
                 help="Memory of each worker."),
    click.option("--worker-gpus", type=int, default=0, metavar="N", show_default=True,
                 help="GPUs of each worker."),
    click.option("--head-cpu", default="2", metavar="CPUS", show_default=True,
                 help="CPUs of the head."),
    click.option("--head-memory", default="4Gi", metavar="SIZE", show_default=True,
                 help="Memory of the head."),
    click.option("--head-gpus", type=int, default=0, metavar="N", show_default=True,
                 help="GPUs of the head."),
    click.option("--gpu-resource", default="nvidia.com/gpu", metavar="NAME", show_default=True,
                 help="Kubernetes' name of a GPU."),
)  # fmt: skip
_place_flags = options(
    click.option(
        "--node-selector", multiple=True, metavar="NAME=VALUE", help="Label of nodes for all pods."
    ),
    click.option(
        "--worker-node-selector", multiple=True, metavar="NAME=VALUE",
        help="Label of nodes for workers.",
    ),
    click.option(
        "--toleration", multiple=True, metavar="KEY[=VALUE][:EFFECT]",
        help="Taint that all pods tolerate.",
    ),
)  # fmt: skip
_env_flags = options(
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable, literally."),
    click.option(
        "--env-from-secret", multiple=True, metavar="NAME=SECRET:KEY",
        help="Variable from a Secret.",
    ),
    click.option(
        "--auth", type=click.Choice(["token", "disabled"]), default="token", show_default=True,
        help="Whether clients of Ray need a token.",
    ),
    click.option(
        "--auth-secret", metavar="NAME", help="Secret with the token; KubeRay creates one if unset."
    ),
    click.option(
        "--python-match", type=click.Choice(["patch", "minor"]), default="patch", show_default=True,
        help="How closely the Python of an external driver must match.",
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
    """Write a RayCluster, whose nodes hold the function and wait for work."""
    from mfimage.manifests.kuberay.manifest import raycluster as write

    click.echo(write(*_image_and_cluster(image, given)), nl=False)


@kuberay.command()
@_cluster_flags
@click.option("--input", required=True, metavar="URL", help="Records: a file, folder or glob.")
@click.option("--output", required=True, metavar="URL", help="Folder for the results.")
@click.option("--format", metavar="NAME", help="Input format: jsonl, avro or parquet; by suffix.")
@click.option("--output-format", metavar="NAME", help="Output format; the input's by default.")
@click.option("--batch-size", type=int, metavar="N", help="Records in each call.")
@click.option("--num-actors", type=int, metavar="N",
              help="Copies of the function; by default as many as fit.")  # fmt: skip
@click.option("--num-cpus", type=float, default=1.0, metavar="N", show_default=True,
              help="CPUs of each copy.")  # fmt: skip
@click.option("--num-gpus", type=float, metavar="N",
              help="GPUs of each copy; 1 if workers have GPUs.")  # fmt: skip
@click.option("--allow-errors", is_flag=True, help="Succeed although records failed.")
@click.option("--ttl", type=int, default=300, metavar="SECONDS", show_default=True,
              help="Time that the cluster and its logs remain after the job.")  # fmt: skip
@click.option("--backoff-limit", type=int, default=1, metavar="N", show_default=True,
              help="Further attempts, each on a new cluster.")  # fmt: skip
@click.option("--deadline", type=int, metavar="SECONDS", help="Time until the job is stopped.")
def rayjob(image: str, **given: Any) -> None:
    """Write a RayJob, which starts a cluster, runs a batch on it, and stops it."""
    from mfimage.manifests.kuberay.manifest import rayjob as write
    from mfimage.manifests.kuberay.work import JobOptions

    job = JobOptions(**{each.name: given[each.name] for each in fields(JobOptions)})
    click.echo(write(*_image_and_cluster(image, given), job), nl=False)


@kuberay.command()
@_cluster_flags
@click.option("--serve-replicas", type=int, metavar="N",
              help="Copies of the function; one for each worker by default.")  # fmt: skip
@click.option("--serve-min-replicas", type=int, metavar="N", help="Minimum of copies.")
@click.option("--serve-max-replicas", type=int, metavar="N", help="Maximum of copies.")
@click.option("--serve-ongoing-requests", type=float, metavar="N",
              help="Concurrent requests for each copy, above which one is added.")  # fmt: skip
@click.option("--serve-cpus", type=float, default=1.0, metavar="N", show_default=True,
              help="CPUs of each copy.")  # fmt: skip
@click.option("--serve-gpus", type=float, metavar="N",
              help="GPUs of each copy; 1 if workers have GPUs.")  # fmt: skip
def rayservice(image: str, **given: Any) -> None:
    """Write a RayService, a cluster that serves POST /FUNCTION."""
    from mfimage.manifests.kuberay.manifest import rayservice as write
    from mfimage.manifests.kuberay.work import ServiceOptions

    service = ServiceOptions(
        **{each.name: given[f"serve_{each.name}"] for each in fields(ServiceOptions)}
    )
    click.echo(write(*_image_and_cluster(image, given), service), nl=False)


def _image_and_cluster(image: str, given: dict[str, Any]) -> tuple[RayImage, ClusterOptions]:
    from mfimage.cli.console import say
    from mfimage.manifests.kuberay.image import Stated, read_ray_image

    # Options first: checking them takes no time.
    cluster = _cluster_options(given)
    stated = Stated(**{each.name: given[each.name] for each in fields(Stated)})
    return read_ray_image(image, stated, say=say), cluster


def _cluster_options(given: Mapping[str, Any]) -> ClusterOptions:
    from mfimage.manifests.kuberay.options import ClusterOptions, Resources

    def resources(pod: str) -> Resources:
        return Resources(**{name: given[f"{pod}_{name}"] for name in ("cpu", "memory", "gpus")})

    return ClusterOptions(
        **{name: given[name] for name in _AS_GIVEN},
        head=resources("head"),
        worker=resources("worker"),
        labels=parse_pairs(given["label"], field="label"),
        node_selector=parse_pairs(given["node_selector"], field="node-selector"),
        worker_node_selector=parse_pairs(
            given["worker_node_selector"], field="worker-node-selector"
        ),
        tolerations=tuple(parse_toleration(text) for text in given["toleration"]),
        image_pull_secrets=tuple(given["image_pull_secret"]),
        env=parse_pairs(given["env"], field="env"),
        env_from_secret=parse_secrets(given["env_from_secret"]),
        run_as_user=parse_user(given["run_as_user"]),
    )


def parse_pairs(texts: Iterable[str], *, field: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` each; the value may contain ``=``.

    Raises
    ------
    OptionError
        If there is no ``=``, or a name is given twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            # Not all of the text, which may be part of a credential.
            raise OptionError(f"{field}: {name[:40]!r} has no value", hint=f"--{field} NAME=VALUE")
        if name in pairs:
            raise OptionError(f"{field}: {name} is given twice", hint="leave one of them out")
        pairs[name] = value
    return pairs


def parse_secrets(texts: Iterable[str]) -> dict[str, SecretRef]:
    """Parse ``NAME=SECRET:KEY`` each.

    Raises
    ------
    OptionError
        If a part is missing.
    """
    from mfimage.manifests.kuberay.options import SecretRef

    found = {}
    for name, text in parse_pairs(texts, field="env-from-secret").items():
        secret, _, key = text.partition(":")
        if not secret or not key:
            raise OptionError(
                f"env-from-secret: {name}={text} does not name a key of a Secret",
                hint=f"--env-from-secret {name}=SECRET:KEY",
            )
        found[name] = SecretRef(secret=secret, key=key)
    return found


def parse_toleration(text: str) -> Toleration:
    """Parse ``KEY[=VALUE][:EFFECT]``, as ``kubectl taint`` writes taints."""
    from mfimage.manifests.kuberay.options import Toleration

    taint, _, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    return Toleration(key=key, value=value if equals else None, effect=effect or None)


def parse_user(text: str) -> int | None:
    """Parse a uid; None for ``any``.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if text == "any":
        return None
    if not text.isascii() or not text.isdigit():
        raise OptionError(f"run-as-user: {text!r} is not a uid", hint="such as 1000, or any")
    return int(text)
