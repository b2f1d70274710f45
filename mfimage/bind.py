"""bind: ``@json_function`` + task -> a function package."""

from __future__ import annotations

import datetime
import functools
import inspect
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfimage.capture.artifacts import copy_artifacts, missing_artifact
from mfimage.capture.code import Code, archive, capture_code, staged
from mfimage.capture.environment import Environment, describe_environment
from mfimage.capture.examples import record_examples
from mfimage.capture.lock import IndexOptions
from mfimage.capture.reads import parameters_read
from mfimage.capture.source import IMPORTING, locate, require_decorated
from mfimage.capture.task import TaskInfo, describe_task, find_task
from mfimage.errors import CaptureError, InputError, OptionError, ParameterError, TaskError
from mfimage.function import serializers
from mfimage.function.decorator import DecoratedFunction
from mfimage.function.parameters import declared_parameters, missing_parameters
from mfimage.package.spec import NAME, ArtifactRef, EnvironmentSpec, FunctionSpec, Lineage
from mfimage.package.store import PackageStore, blob_name

if TYPE_CHECKING:
    from metaflow import Task

ROOT_VARIABLE = "MFIMAGE_FUNCTIONS_ROOT"


@dataclass(frozen=True, kw_only=True)
class BindOptions:
    """What may be said when a function is bound.

    Attributes
    ----------
    name : str, optional
        Name of the function package; the function's own by default.
    artifacts : sequence of str, optional
        Which artifacts go along; by default those that the function reads.
    environment : path, optional
        A requirements file, ``pylock.toml`` or ``uv.lock`` that describes the environment.
    examples : sequence
        Records to run the function on; their outputs are kept.
    parameters : mapping
        JSON values that take the place of artifacts of the same name.
    root : str or path, optional
        Where function packages are kept.
    namespace : str, optional
        Metaflow namespace in which a task given as text is looked up; ``""`` is the global one.
    platform : str
        What the environment is locked for.
    """

    name: str | None = None
    artifacts: Sequence[str] | None = None
    environment: str | os.PathLike[str] | None = None
    examples: Sequence[Any] = ()
    parameters: Mapping[str, Any] | None = None
    root: str | os.PathLike[str] | None = None
    namespace: str | None = None
    platform: str = "linux/amd64"
    index: IndexOptions = field(default_factory=IndexOptions)


def bind(function: DecoratedFunction, task: Task | str, options: BindOptions | None = None) -> str:
    """Write a function package and return its reference.

    ``function.json`` is written last, so an interrupted bind leaves nothing that looks whole;
    binding the same thing twice gives the same reference.

    Parameters
    ----------
    function : DecoratedFunction
        What ``@json_function`` made.
    task : metaflow.Task or str
        The finished task, or ``Flow[/run[/step[/task]]]``.

    Raises
    ------
    MfimageError
        Naming what is wrong with the function, the task, the code or the environment.
    """
    options = options or BindOptions()
    _refuse_while_importing()
    function = require_decorated(function)
    values = _checked_parameters(function, options.parameters or {})
    needs = _needs(function, options)
    info = describe_task(_task(task, options, needs, set(values)))
    names = _artifact_names(function, info, needs, set(values))
    code = capture_code(function, locate(function))
    store = PackageStore(options.root or default_root(info))
    artifacts = copy_artifacts(info, names, store)
    environment = _describe(code, artifacts, store, options)
    schema = function.signature.schema
    spec = FunctionSpec(
        name=_checked_name(options.name or function.__name__),
        kind=function.kind,
        batch=function.signature.batch,
        entrypoint=code.entrypoint,
        description=inspect.cleandoc(function.__doc__ or ""),
        task=info.pathspec,
        input_schema=schema.input_schema(),
        output_schema=schema.output_schema(),
        parameter_schema=_parameter_schema(function, artifacts, values),
        parameters=values,
        script=_script_module(code, info),
        code=store.put_bytes(archive(code)),
        environment=_stored_environment(environment, store),
        artifacts=artifacts,
        lineage=_lineage(info, code),
    )
    spec = replace(spec, examples=record_examples(spec, options.examples, store))
    return store.write(spec)


def _refuse_while_importing() -> None:
    if os.environ.get(IMPORTING):
        raise CaptureError(
            "a function is bound while its own module is imported",
            hint="put the binding under: if __name__ == '__main__':",
        )


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise OptionError(
            f"name: {name!r} is not a function name",
            hint="use letters, digits, _ and -, at most 63, starting with a letter",
        )
    return name


def _checked_parameters(function: DecoratedFunction, values: Mapping[str, Any]) -> dict[str, Any]:
    declared = declared_parameters(function.signature.params_type)
    for name in values:
        if declared and name not in declared:
            raise OptionError(
                f"parameters: the function declares no {name!r}",
                hint=f"it declares {', '.join(declared)}",
            )
    plain = serializers.dumps(dict(values), root="parameters", error=InputError)
    return dict(serializers.loads(plain))


def _needs(function: DecoratedFunction, options: BindOptions) -> set[str] | None:
    """Return the parameters the function reads, as far as can be told; None for any."""
    if options.artifacts is not None:
        return set(options.artifacts)
    return parameters_read(function)


def _task(task: Task | str, options: BindOptions, needs: set[str] | None, given: set[str]) -> Task:
    if isinstance(task, str):
        wanted = sorted((needs or set()) - given)
        return find_task(task, namespace=options.namespace, wanted=wanted)
    if not hasattr(task, "metadata_dict"):
        raise TaskError(
            f"task: expected a metaflow.Task or a pathspec, got {task!r}",
            hint="write Task('Flow/run/step/task')",
        )
    return task


def _artifact_names(
    function: DecoratedFunction, info: TaskInfo, needs: set[str] | None, given: set[str]
) -> set[str]:
    declared = function.signature.params_type
    present = set(info.artifacts)
    if needs is None:
        return present - given
    optional = set(declared_parameters(declared)) - set(missing_parameters(declared, given))
    for name in sorted(needs - given - present - optional):
        raise missing_artifact(info, name)
    for name in missing_parameters(declared, given | (needs & present)):
        raise ParameterError(
            f"{declared.__name__} needs {name!r}, which artifacts= leaves out",
            hint="add it to artifacts=, or give it in parameters=",
        )
    return (needs & present) - given


def default_root(info: TaskInfo) -> str:
    """Return where function packages are kept: ``MFIMAGE_FUNCTIONS_ROOT``, else beside the data.

    Beside a local ``.metaflow`` that is ``.mfimage``.
    """
    chosen = os.environ.get(ROOT_VARIABLE)
    if chosen:
        return chosen
    parent = info.root.rstrip("/").rpartition("/")[0]
    return f"{parent}/.mfimage" if info.datastore == "local" else f"{parent}/mfimage"


def _describe(
    code: Code,
    artifacts: Mapping[str, ArtifactRef],
    store: PackageStore,
    options: BindOptions,
) -> Environment:
    with staged(code) as folder:
        return describe_environment(
            declared=Path(options.environment) if options.environment else None,
            project=code.root or Path.cwd(),
            code_root=folder,
            files=[Path(name) for name in sorted({*code.files, *code.generated})],
            module=code.module,
            artifacts={
                name: (functools.partial(store.storage.open, blob_name(ref)), ref.encoding)
                for name, ref in artifacts.items()
            },
            platform=options.platform,
            index=options.index,
        )


def _stored_environment(environment: Environment, store: PackageStore) -> EnvironmentSpec:
    return EnvironmentSpec(
        python=environment.python,
        platform=environment.platform,
        source=environment.source,
        lock=store.put_bytes(environment.lock.data),
        wheels={name: store.put_file(path) for name, path in environment.lock.wheels.items()},
        system_packages=environment.system_packages,
    )


def _parameter_schema(
    function: DecoratedFunction, artifacts: Mapping[str, ArtifactRef], values: Mapping[str, Any]
) -> dict[str, Any]:
    declared = function.signature.params_type
    properties = {name: {"x-python-type": ref.type} for name, ref in artifacts.items()}
    properties |= {name: {"default": value} for name, value in values.items()}
    for name in declared_parameters(declared):
        properties.setdefault(name, {})
    required = missing_parameters(declared, set()) or sorted(artifacts)
    return {"type": "object", "properties": properties, "required": sorted(required)}


def _script_module(code: Code, info: TaskInfo) -> str | None:
    """Return the module that was ``__main__`` in the task: pickles may name its classes."""
    script = info.metadata.get("script-name", "")
    return Path(script).stem if script and Path(script).name in code.files else None


def _lineage(info: TaskInfo, code: Code) -> Lineage:
    now = datetime.datetime.now(datetime.timezone.utc)
    return Lineage(
        flow=info.flow,
        run=info.run,
        step=info.step,
        task=info.task,
        user=info.metadata.get("user"),
        metaflow_version=info.metadata.get("metaflow_version"),
        git_commit=_git_commit(code.root),
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _git_commit(folder: Path | None) -> str | None:
    command = ["git", "-C", str(folder or "."), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
