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


def _option(name: str, metavar: str | None, text: str, **more: Any) -> Any:
    return click.option(name, metavar=metavar, help=text, show_default=True, **more)


def _size_options(pod: str, of: str) -> list[Any]:
    return [
        _option(f"--{pod}-cpu", "CPUS", f"CPUs of {of}.", default="2"),
        _option(f"--{pod}-memory", "SIZE", f"Memory of {of}.", default="4Gi"),
        _option(f"--{pod}-gpus", "N", f"GPUs of {of}.", type=int, default=0),
    ]


_cluster_flags = options(
    click.argument("image"),
    _option("--ray-version", "VERSION", "Version of Ray in an image that is not found."),
    _option("--function", "NAME", "Function in an image that is not found."),
    _option("--function-digest", "sha256:HEX", "Its digest in an image that is not found."),
    _option("--name", "NAME", "Name of the resource; the function's by default."),
    _option("--namespace", "NAME", "Namespace; kubectl's by default."),
    _option("--label", "NAME=VALUE", "Label of the resource.", multiple=True),
    _option("--service-account", "NAME", "Service account of the pods."),
    _option("--image-pull-secret", "NAME", "Secret to pull with.", multiple=True),
    _option("--image-pull-policy", "POLICY",
            "Always, IfNotPresent (the default for an image by digest) or Never."),
    _option("--run-as-user", "UID|any", "User of the pods; any: as the cluster chooses.",
            default="1000"),
    _option("--replicas", "N", "Worker pods; 1 by default.", type=int),
    _option("--min-replicas", "N", "Minimum of worker pods.", type=int),
    _option("--max-replicas", "N", "Maximum of worker pods.", type=int),
    _option("--autoscaling", None, "Let Ray start and stop workers.", is_flag=True),
    _option("--idle-timeout", "SECONDS", "Time until Ray stops an idle worker.",
            type=int, default=60),
    *_size_options("worker", "each worker"),
    *_size_options("head", "the head"),
    _option("--gpu-resource", "NAME", "Kubernetes' name of a GPU.", default="nvidia.com/gpu"),
    _option("--node-selector", "NAME=VALUE", "Label of nodes for all pods.", multiple=True),
    _option("--worker-node-selector", "NAME=VALUE", "Label of nodes for workers.", multiple=True),
    _option("--toleration", "KEY[=VALUE][:EFFECT]", "Taint that all pods tolerate.", multiple=True),
    _option("--env", "NAME=VALUE", "Variable, literally.", multiple=True),
    _option("--env-from-secret", "NAME=SECRET:KEY", "Variable from a Secret.", multiple=True),
    _option("--auth", None, "Whether clients of Ray need a token.",
            type=click.Choice(["token", "disabled"]), default="token"),
    _option("--auth-secret", "NAME", "Secret with the token; KubeRay creates one if unset."),
    _option("--python-match", None, "How closely the Python of an external driver must match.",
            type=click.Choice(["patch", "minor"]), default="patch"),
)  # fmt: skip
_job_flags = options(
    _option("--input", "URL", "Records: a file, folder or glob.", required=True),
    _option("--output", "URL", "Folder for the results.", required=True),
    _option("--format", "NAME", "Input format: jsonl, avro or parquet; by suffix."),
    _option("--output-format", "NAME", "Output format; the input's by default."),
    _option("--batch-size", "N", "Records in each call.", type=int),
    _option("--num-actors", "N", "Copies of the function; by default as many as fit.", type=int),
    _option("--num-cpus", "N", "CPUs of each copy.", type=float, default=1.0),
    _option("--num-gpus", "N", "GPUs of each copy; 1 if workers have GPUs.", type=float),
    _option("--allow-errors", None, "Succeed although records failed.", is_flag=True),
    _option("--ttl", "SECONDS", "Time that the cluster and its logs remain after the job.",
            type=int, default=300),
    _option("--backoff-limit", "N", "Further attempts, each on a new cluster.",
            type=int, default=1),
    _option("--deadline", "SECONDS", "Time until the job is stopped.", type=int),
)  # fmt: skip
_serve_flags = options(
    _option("--serve-replicas", "N", "Copies of the function; by default one for each worker.",
            type=int),
    _option("--serve-min-replicas", "N", "Minimum of copies.", type=int),
    _option("--serve-max-replicas", "N", "Maximum of copies.", type=int),
    _option("--serve-ongoing-requests", "N",
            "Concurrent requests for each copy, above which one is added.", type=float),
    _option("--serve-cpus", "N", "CPUs of each copy.", type=float, default=1.0),
    _option("--serve-gpus", "N", "GPUs of each copy; 1 if workers have GPUs.", type=float),
)  # fmt: skip


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
@_job_flags
def rayjob(image: str, **given: Any) -> None:
    """Write a RayJob, which starts a cluster, runs a batch on it, and stops it."""
    from mfimage.manifests.kuberay.manifest import rayjob as write
    from mfimage.manifests.kuberay.work import JobOptions

    job = JobOptions(**{each.name: given[each.name] for each in fields(JobOptions)})
    click.echo(write(*_image_and_cluster(image, given), job), nl=False)


@kuberay.command()
@_cluster_flags
@_serve_flags
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
