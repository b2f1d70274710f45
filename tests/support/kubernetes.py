"""Manifests as Kubernetes, Knative and KServe accept them: strictly, without a cluster.

Kubernetes' own kinds by `kubernetes-validate`. The resources of others by their definitions, where
a folder has them (``MFIMAGE_CRDS``, or ``crds`` beside ``shared/kuberay``).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

# The oldest release with `preStop: sleep` that is still maintained, and the newest that there is.
VERSIONS = ("1.34", kubernetes_validate.latest_version())
_SHARED = Path(__file__).parents[3] / "shared" / "crds"


def validate(document: Mapping[str, Any]) -> None:
    """Refuse what the API server would, unknown fields too."""
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


def validate_pod(pod: Mapping[str, Any]) -> None:
    """Refuse a pod's spec that Kubernetes would refuse."""
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod})


@functools.cache
def definitions() -> Mapping[tuple[str, str], jsonschema.Draft7Validator]:
    """Return the validators of the folder, by version and kind; none without one."""
    folder = Path(os.environ.get("MFIMAGE_CRDS", _SHARED))
    found = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(folder.glob("*.yaml")):
        spec = yaml.load(path.read_text(), Loader=loader)["spec"]
        for each in spec["versions"]:
            schema = _strict(each["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = (f"{spec['group']}/{each['name']}", spec["names"]["kind"])
            found[key] = jsonschema.Draft7Validator(schema)
    return found


def _strict(schema: Any) -> Any:
    """Refuse what the schema does not name, and do not require what has a default."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {
        key: {name: _strict(each) for name, each in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
    }
    fields = schema.get("properties")
    if isinstance(fields, dict) and "type" in schema:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
        made["required"] = [
            name for name in schema.get("required", ()) if "default" not in fields.get(name, {})
        ]
    return made
