"""Manifests that run an image elsewhere.

A kind of manifest is a module with a `Kind` named ``KIND`` (`kind`) and its line in ``KINDS``: it
turns an image and options into data, which `text.to_yaml` writes. `shared` has the options and
parts that several kinds have, `image` finds the image, `checks` has the rules of Kubernetes that
options are validated against. The command line reads the kinds from the table.
"""

from collections.abc import Mapping
from types import MappingProxyType

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "deployment": "mfimage.manifests.deployment",
        "knative": "mfimage.manifests.knative",
        "kserve": "mfimage.manifests.kserve",
        "compose": "mfimage.manifests.compose",
        "raycluster": "mfimage.manifests.kuberay.raycluster",
        "rayjob": "mfimage.manifests.kuberay.rayjob",
        "rayservice": "mfimage.manifests.kuberay.rayservice",
    }
)
