"""Texts of the command line -> the options that manifests take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mfimage.errors import OptionError
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.parts import Resources, SecretRef, Toleration

_AS_GIVEN = (
    "name",
    "namespace",
    "gpu_resource",
    "replicas",
    "min_replicas",
    "max_replicas",
    "autoscaling",
    "idle_timeout",
    "service_account",
    "image_pull_policy",
    "auth",
    "auth_secret",
    "python_match",
)
_ANY_USER = "any"


def cluster_options(given: Mapping[str, Any]) -> ClusterOptions:
    """Make the options of a cluster of what was written.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    return ClusterOptions(
        **{name: given[name] for name in _AS_GIVEN},
        labels=parse_pairs(given["label"], field="label"),
        head=Resources(cpu=given["head_cpu"], memory=given["head_memory"], gpus=given["head_gpus"]),
        worker=Resources(
            cpu=given["worker_cpu"], memory=given["worker_memory"], gpus=given["worker_gpus"]
        ),
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
    """Parse ``NAME=VALUE`` each; the value may have more ``=``.

    Raises
    ------
    OptionError
        If there is no ``=``, or a name twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            # Not the whole text: half of a credential may be all that was written.
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
        Naming what is missing.
    """
    found = {}
    for name, text in parse_pairs(texts, field="env-from-secret").items():
        secret, colon, key = text.partition(":")
        if not colon or not secret or not key:
            raise OptionError(
                f"env-from-secret: {name}={text} names no key in a Secret",
                hint=f"--env-from-secret {name}=SECRET:KEY",
            )
        found[name] = SecretRef(secret=secret, key=key)
    return found


def parse_toleration(text: str) -> Toleration:
    """Parse ``KEY[=VALUE][:EFFECT]``, as ``kubectl taint`` writes taints."""
    taint, _, effect = text.partition(":")
    key, equals, value = taint.partition("=")
    return Toleration(key=key, value=value if equals else None, effect=effect or None)


def parse_user(text: str) -> int | None:
    """Parse a uid, or ``any`` for the one that the cluster's policy chooses.

    Raises
    ------
    OptionError
        If it is neither.
    """
    if text == _ANY_USER:
        return None
    if not text.isascii() or not text.isdigit():
        raise OptionError(
            f"run-as-user: {text!r} is no number of a user", hint=f"as 1000, or {_ANY_USER}"
        )
    return int(text)
