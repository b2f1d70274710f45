"""Checks of an image's configuration: labels, credentials, user."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mfimage.errors import OptionError, PackageError, shorten
from mfimage.image.checks.report import Failed
from mfimage.image.checks.runner import Container, ImageRunner
from mfimage.image.find.info import ImageInfo
from mfimage.image.plan.labels import LOCK_DIGEST, PYTHON, TARGET, VERSION, image_labels
from mfimage.image.plan.options import LABEL_PREFIX, refuse_credentials
from mfimage.image.plan.pipeline import pipeline_subject
from mfimage.image.plan.several import functions_subject
from mfimage.image.plan.subject import Subject, function_subject
from mfimage.image.targets import TARGETS
from mfimage.package.spec import (
    BlobRef,
    EnvironmentSpec,
    FunctionSpec,
    PipelineSpec,
    is_pipeline,
    parse_any,
    sha256_digest,
)
from mfimage.runtime.layout import FUNCTION, FUNCTION_JSON, FUNCTIONS, FUNCTIONS_JSON, LOCK
from mfimage.runtime.serving.served import Served

SPEC_FILE = f"{FUNCTION}/{FUNCTION_JSON}"
LIST_FILE = f"{FUNCTION}/{FUNCTIONS_JSON}"
LOCK_FILE = f"{FUNCTION}/{LOCK}"


def read_served(runner: ImageRunner) -> Served:
    """Read the image's function, or functions."""
    listed = runner.read(LIST_FILE)
    if listed is None:
        data = runner.read(SPEC_FILE)
        if data is None:
            raise Failed(f"there is no {SPEC_FILE}, and no {LIST_FILE}")
        return Served.alone(_parse_any(data, SPEC_FILE))
    try:
        names: list[str] = json.loads(listed)["functions"]
    except (ValueError, LookupError, TypeError) as error:
        raise Failed(f"{LIST_FILE} cannot be read: {error}") from None
    files = runner.files(f"{FUNCTION}/{FUNCTIONS}")
    specs = []
    for name in names:
        path = f"{name}/{FUNCTION_JSON}"
        if path not in files:
            raise Failed(f"{LIST_FILE} names {name}, and there is no {FUNCTIONS}/{path}")
        specs.append(_parse(files[path], f"{FUNCTIONS}/{path}"))
    # A name that is not here keeps the server from starting, which is another check's to find.
    default = runner.info.env.get("MFIMAGE_DEFAULT_FUNCTION")
    return Served.together(specs, default if default in names else None)


def _parse(data: bytes, where: str) -> FunctionSpec:
    spec = _parse_any(data, where)
    if isinstance(spec, PipelineSpec):
        raise Failed(f"{where}: {is_pipeline(spec)}")
    return spec


def _parse_any(data: bytes, where: str) -> FunctionSpec | PipelineSpec:
    try:
        return parse_any(data, where=where)
    except PackageError as error:
        raise Failed(error.message) from None


def check_labels(info: ImageInfo, served: Served, lock: bytes | None) -> str:
    """Validate the labels ``io.mfimage.*`` against the function, or functions."""
    expected, has = _expected(info, served, lock), info.labels
    wrong = [(name, value) for name, value in expected.items() if has.get(name) != value]
    if wrong:
        (name, value), more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        if name not in has:
            raise Failed(f"the label {name} is missing{more}")
        found, known = shorten(has[name]), shorten(value)
        raise Failed(f"the label {name} says {found}; {FUNCTION_JSON} has {known}{more}")
    return f"{len(expected)} labels agree with {FUNCTION_JSON}"


def _expected(info: ImageInfo, served: Served, lock: bytes | None) -> dict[str, str]:
    has = info.labels
    target = TARGETS.get(has.get(TARGET, ""))
    labels = image_labels(
        _subject(served, has),
        target=target.name if target else " or ".join(TARGETS),
        # Without a lock in the image, any digest will do.
        lock=sha256_digest(lock) if lock is not None else has.get(LOCK_DIGEST) or "sha256:...",
        base="",
        base_digest=None,
        more={name: has.get(name) or "..." for name in (target.label_names if target else ())},
    )
    ours = {name: value for name, value in labels.items() if name.startswith(LABEL_PREFIX)}
    # Another version of mfimage may have built it.
    return {**ours, VERSION: has.get(VERSION) or "..."}


def _subject(served: Served, has: Mapping[str, str]) -> Subject:
    (first, *_) = served.specs.values()
    if isinstance(first, FunctionSpec):
        functions = {k: spec for k, spec in served.specs.items() if isinstance(spec, FunctionSpec)}
        several = served.several
        return (
            functions_subject(functions, first.environment) if several else function_subject(first)
        )
    assert isinstance(first, PipelineSpec)
    # That of its parts: any will do.
    nothing = BlobRef(digest=sha256_digest(b""), size=0)
    python = has.get(PYTHON) or "..."
    environment = EnvironmentSpec(python=python, platform="", source="", lock=nothing)
    return pipeline_subject(first, environment)


def check_credentials(info: ImageInfo) -> str:
    """Look for URLs with a password in what an image shows to everyone."""
    for place, text in info.public_texts().items():
        try:
            refuse_credentials(place, text)
        except OptionError as error:
            raise Failed(error.message) from None
    return f"none in {len(info.env)} variables, {len(info.labels)} labels, the history"


def check_user(info: ImageInfo) -> str:
    """Refuse root, and names that Kubernetes could not tell from root's."""
    uid = info.user.partition(":")[0]
    if uid in ("", "root") or (uid.isdigit() and int(uid) == 0):
        raise Failed(f"it runs as root: its user is {info.user!r}")
    if not uid.isdigit():
        raise Failed(
            f"its user is {info.user!r}: Kubernetes' runAsNonRoot wants a number, not a name"
        )
    return info.user


def check_process(container: Container) -> str:
    """Refuse a first process that has a uid of root's, whatever the configuration says."""
    status = container.execute(("cat", "/proc/1/status"))
    for line in status.splitlines():
        if line.startswith("Uid:"):
            ids = line.split()[1:]  # real, effective, saved, file system
            if "0" in ids:
                raise Failed(f"its first process runs as root: uids {', '.join(ids)}")
            return f"uid {ids[1]}"
    raise Failed(f"its first process cannot be seen: {status.strip()[:80]!r}")
