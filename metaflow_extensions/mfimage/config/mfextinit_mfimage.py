"""Tells Metaflow that ``spin`` runs a step where its decorator says."""

import metaflow.metaflow_config as config

SPIN_ALLOWED_DECORATORS = [
    *getattr(config, "SPIN_ALLOWED_DECORATORS", ()),
    "docker",
    "devcontainer",
]
