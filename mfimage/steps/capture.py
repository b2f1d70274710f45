"""What an image is built from: a function package, or a step of a flow with its code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mfimage.capture.code.archive import CapturedCode, archive, project_files
from mfimage.capture.code.code_package import git_commit
from mfimage.capture.code.locate import import_place, is_file
from mfimage.errors import CaptureError, OptionError
from mfimage.image.plan.lock import index_options
from mfimage.image.plan.names import check_names
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.pipeline import pipeline_source
from mfimage.image.plan.several import functions_source, open_packages
from mfimage.image.plan.subject import STEP, BuildSource, Subject, function_source
from mfimage.package.platforms import machine_platform
from mfimage.package.spec import sha256_of
from mfimage.package.store import Pipeline, open_any
from mfimage.runtime.layout import CODE
from mfimage.steps.declared import Declared, FlowFile, declare_steps
from mfimage.steps.environments import solved, step_store

_EXAMPLE = "write file.py:step, or file.py:Flow.step"


def open_source(references: str | Sequence[str], options: BuildOptions) -> BuildSource:
    """Return what an image is built from, for the target of ``options``."""
    first, *more = [references] if isinstance(references, str) else references
    if options.target == STEP:
        if more:
            raise OptionError(
                f"an image for {STEP} is of one step: {first} and {more[0]} are two",
                hint="build an image of each",
            )
        return capture_step(first, options)
    if not more and isinstance(found := open_any(first), Pipeline):
        check_names({found.spec.name: found.spec})
        return pipeline_source(found, target=options.target)
    packages = open_packages([first, *more])
    check_names({name: package.spec for name, package in packages.items()})
    # A foreach gives an image of several, however many tasks it has.
    if more or "/" in next(iter(packages)):
        return functions_source(packages)
    return function_source(next(iter(packages.values())))


def capture_step(reference: str, options: BuildOptions) -> BuildSource:
    """Return a step with its environment and its flow's code; ``reference`` is ``file.py:step``."""
    flow, step, path = find_step(reference)
    file = FlowFile(
        path=path, flow=flow.name, environment="local", datastore=default_datastore(),
        index=index_options(options),
    )  # fmt: skip
    platform = next(iter(options.platforms), machine_platform())
    declared = declare_steps(flow, {step.name: platform}, file)[step.name]
    store = step_store()
    code = CapturedCode(
        entrypoint=f"{path.stem}:{flow.name}.{step.name}",
        root=path.parent,
        files=project_files(path.parent),
        generated={},
    )
    blob = store.put_bytes(archive(code))
    content = {
        "flow": flow.name, "step": step.name, "code": blob.digest, "environment": declared.digest
    }  # fmt: skip
    subject = Subject(
        kind=STEP,
        name=step.name,
        digest=sha256_of(content),
        description=(step.__doc__ or "").strip(),
        entrypoint=code.entrypoint,
        environment=solved(declared, store, fresh=options.no_cache),
        code={CODE: blob},
        labels={"flow": flow.name, **environment_labels(declared)},
        lineage={"flow": flow.name, "step": step.name, "git.commit": git_commit(path.parent)},
    )
    return BuildSource(subject=subject, store=store, folder=f"steps/{subject.digest[7:]}")


def environment_labels(declared: Declared) -> dict[str, str]:
    """Return the labels that say what an image's environment was made from."""
    return {"environment.source": declared.source, "environment.digest": declared.digest}


def find_step(reference: str) -> tuple[Any, Any, Path]:
    """Return a flow, its step, and the flow's file, by ``file.py:step``."""
    place, _, name = reference.rpartition(":")
    flow_name, _, step_name = name.rpartition(".")
    if not is_file(place) or not step_name.isidentifier():
        raise CaptureError(f"{reference!r} does not name a step", hint=_EXAMPLE)
    from mfimage.runtime.records.streams import results

    with results("-"):  # what the module prints is not the result
        module = import_place(place)
    flows = [each(use_cli=False) for each in _flows(module) if flow_name in ("", each.__name__)]
    if not flows:
        what = f"flow {flow_name}" if flow_name else "flow"
        raise CaptureError(f"{place} has no {what}", hint=_EXAMPLE)
    found = [(flow, step) for flow in flows for step in flow if step.name == step_name]
    if len(found) != 1:
        steps = ", ".join(f"{flow.name}.{step.name}" for flow in flows for step in flow)
        message = "has several steps" if found else "has no step"
        raise CaptureError(f"{place} {message} {step_name!r}", hint=f"its steps: {steps}")
    flow, step = found[0]
    return flow, step, Path(str(module.__file__)).absolute()


def _flows(module: ModuleType) -> list[type]:
    from metaflow import FlowSpec

    own = vars(sys.modules[module.__name__]).values()
    return [
        each
        for each in own
        if isinstance(each, type)
        and issubclass(each, FlowSpec)
        and each.__module__ == module.__name__
    ]


def default_datastore() -> str:
    """Return the TYPE of the datastore that flows use here when they name none."""
    from metaflow.metaflow_config import DEFAULT_DATASTORE

    return str(DEFAULT_DATASTORE)
