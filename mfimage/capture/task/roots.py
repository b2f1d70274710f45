"""Where function packages are kept by default."""

from __future__ import annotations

import contextlib
import os

from mfimage.capture.task.datastore import local_roots
from mfimage.errors import ReferenceNotFound
from mfimage.package.store import open_any, split_reference

ROOT_VARIABLE = "MFIMAGE_FUNCTIONS_ROOT"


def default_root(kind: str, datastore: str) -> str:
    """Return ``MFIMAGE_FUNCTIONS_ROOT``, or the place beside a datastore."""
    return os.environ.get(ROOT_VARIABLE) or _beside(kind, datastore)


def _beside(kind: str, datastore: str) -> str:
    """Return ``.mfimage`` beside a local ``.metaflow``, ``s3://bucket/mfimage`` beside others."""
    whole = datastore.rstrip("/")
    if kind == "local":
        return f"{whole.rpartition('/')[0]}/.mfimage"
    # Metaflow names an Azure container without a scheme.
    scheme, separator, path = (whole if "://" in whole else f"{kind}://{whole}").partition("://")
    # There is nothing beside a whole bucket.
    parent = path.rpartition("/")[0] or path
    return f"{scheme}{separator}{parent}/mfimage"


def find_moved(reference: str, error: ReferenceNotFound) -> str:
    """Return where a package is whose root was moved: below a root that is known here."""
    # The digest in its name identifies its content, wherever it is.
    path = split_reference(reference)[1]
    chosen = os.environ.get(ROOT_VARIABLE)
    for root in [*filter(None, [chosen]), *(_beside("local", each) for each in local_roots())]:
        with contextlib.suppress(ReferenceNotFound):
            return open_any(f"{root}/{path}").reference
    hint = f"set {ROOT_VARIABLE} if its root was moved; {error.hint}"
    raise ReferenceNotFound(error.message, hint=hint) from None
