"""bind: a decorated function + task, or the tasks of a foreach -> function packages."""

from __future__ import annotations

import datetime
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mfimage.capture.code._reading import defined_names
from mfimage.capture.code.archive import CapturedCode, archive, capture_code
from mfimage.capture.code.code_package import git_commit, packaged_commit
from mfimage.capture.code.imports import Code
from mfimage.capture.code.interpreter import IMPORTING
from mfimage.capture.code.locate import locate, require_decorated
from mfimage.capture.environment.sources import Environment, Request, describe_environment
from mfimage.capture.environment.sources.resolution import find_resolution
from mfimage.capture.lock.indexes import IndexOptions
from mfimage.capture.task.artifacts import (
    Needs,
    checked_values,
    copy_artifacts,
    needs_of,
    parameter_schema,
)
from mfimage.capture.task.foreach import foreach_tasks
from mfimage.capture.task.pathspec import find_task
from mfimage.capture.task.pickles import StoredBytes, named_globals
from mfimage.capture.task.roots import default_root
from mfimage.capture.task.running import is_running, running_task
from mfimage.capture.task.task import TaskInfo, describe_task
from mfimage.errors import CaptureError, OptionError, TaskError
from mfimage.function.decorator import DecoratedFunction
from mfimage.package.archive import extracted
from mfimage.package.spec import (
    NAME,
    NAME_RULE,
    ArtifactRef,
    EnvironmentSpec,
    FunctionSpec,
    Lineage,
)
from mfimage.package.store import PackageStore

if TYPE_CHECKING:
    from metaflow import Task
    from metaflow.metaflow_current import Current


_PARALLEL = 8
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class BindOptions:
    """Options of ``bind``.

    Attributes
    ----------
    name : str, optional
        Name of the function package; by default the function's own.
    artifacts : sequence of str, optional
        Artifacts to include; by default those that the function reads.
    environment : path, optional
        A requirements file, ``pylock.toml`` or ``uv.lock`` that describes the environment.
    examples : sequence
        Records to call the function with; the package keeps its results.
    parameters : mapping
        JSON values that replace artifacts of the same name.
    root : str or path, optional
        Where function packages are kept.
    namespace : str, optional
        Metaflow namespace to look up a task in that is given as text; ``""`` is the global one.
    platform : str
        What the environment is locked for.
    index : IndexOptions
        Package indexes to ask.
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


def bind(
    function: DecoratedFunction, task: Task | Current | str, options: BindOptions | None = None
) -> str:
    """Write a function package and return its reference; the same inputs give the same one.

    Parameters
    ----------
    function : DecoratedFunction
        What ``@json_function`` or ``@avro_function`` made.
    task : metaflow.Task, metaflow.current or str
        The finished task, ``Flow[/run[/step[/task]]]``, or the task that is running now.
    options : BindOptions, optional
        Name, examples, environment and more.

    Returns
    -------
    str
        The reference: path or URL of the package's ``function.json``.

    Raises
    ------
    MfimageError
        Naming what is wrong with the function, the task, the code or the environment.
    """
    options = options or BindOptions()
    function, name = _checked(function, options)
    values = checked_values(function, options.parameters or {})
    needs = needs_of(function, options.artifacts, values)
    info = describe_task(_task(task, options, needs))
    return _bind(function, {name: info}, needs, values, options)[0]


def bind_foreach(
    function: DecoratedFunction, step: str, options: BindOptions | None = None
) -> list[str]:
    """Write a function package for every task of a foreach step; return their references.

    Each is named by the foreach's value: ``predict/emea``. Code and environment are captured once.

    Parameters
    ----------
    function : DecoratedFunction
        What ``@json_function`` or ``@avro_function`` made.
    step : str
        ``Flow/run/step``; all of its tasks must have succeeded.
    options : BindOptions, optional
        The same for all of them.

    Returns
    -------
    list of str
        A reference for each task.

    Raises
    ------
    MfimageError
        Naming what is wrong with the function, the tasks or their values, the code or the
        environment; nothing was written then.
    """
    options = options or BindOptions()
    function, name = _checked(function, options)
    values = checked_values(function, options.parameters or {})
    needs = needs_of(function, options.artifacts, values)
    found = foreach_tasks(step, namespace=options.namespace)
    tasks = {f"{name}/{value}": info for value, info in found.items()}
    for each in tasks:
        _check_name(each)
    return _bind(function, tasks, needs, values, options)


def _checked(function: DecoratedFunction, options: BindOptions) -> tuple[DecoratedFunction, str]:
    """Return the function and its name."""
    if os.environ.get(IMPORTING):
        message = "a function is bound while its own module is imported"
        raise CaptureError(message, hint="put the binding under: if __name__ == '__main__':")
    function = require_decorated(function)
    name = options.name or function.__name__
    _check_name(name)
    return function, name


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise OptionError(f"name: {name!r} is not a function name", hint=f"use {NAME_RULE}")


def _bind(
    function: DecoratedFunction,
    tasks: Mapping[str, TaskInfo],
    needs: Needs,
    values: Mapping[str, Any],
    options: BindOptions,
) -> list[str]:
    """Write the packages of one function and tasks of one run, by the packages' names."""
    chosen = {name: needs.choose(info) for name, info in tasks.items()}
    info = next(iter(tasks.values()))
    script_name = info.metadata.get("script-name", "")
    code = capture_code(function, locate(function), script=script_name)
    scripts = code.scripts(script_name, info.flow)
    script = scripts[0].removesuffix(".py").replace("/", ".") if len(scripts) == 1 else None
    archived = archive(code)
    # Nothing was written up to here. ``function.json`` is written last: an interrupted bind leaves
    # no package that looks complete.
    store = PackageStore(options.root or default_root(info.store.kind, info.store.root))
    found = _each(lambda name: copy_artifacts(tasks[name], chosen[name], store), tasks)
    copied = dict(zip(tasks, found, strict=True))
    schemas = cache(partial(_schemas, function))
    stored = _distinct(copied, store)

    def describe(needed: Mapping[str, str]) -> Environment:
        with extracted(archived, where="the captured code") as folder:
            request = Request(
                code=Code(
                    root=folder,
                    files=[Path(name) for name in code.names],
                    module=code.module,
                    functions=[code.entrypoint.rpartition(":")[2]],
                    artifacts=stored,
                    needed={**function.needed_modules, **needed},
                    script=script,
                ),
                project=code.root or Path.cwd(),
                declared=Path(options.environment) if options.environment else None,
                resolution=partial(find_resolution, info, platform=options.platform),
                platform=options.platform,
                index=options.index,
                meanwhile=schemas,
            )
            return describe_environment(request)

    environment = describe({})
    if needs.names is not None:  # of all artifacts, it may never read those
        _check_main(info, code, scripts, stored)
    spec = FunctionSpec(
        name=function.__name__,
        kind=function.kind,
        batch=function.signature.batch,
        entrypoint=code.entrypoint,
        script=script,
        description=inspect.cleandoc(function.__doc__ or ""),
        task=info.pathspec,
        parameter_schema={},
        parameters=values,
        code=store.put_bytes(archived),
        environment=_stored_environment(environment, store),
        artifacts={},
        lineage=_lineage(info, code),
        **schemas(),
    )
    specs = []
    for name, each in tasks.items():
        artifacts = copied[name]
        bound = replace(
            spec,
            name=name,
            task=each.pathspec,
            parameter_schema=parameter_schema(function, needs, artifacts, values),
            artifacts=artifacts,
            lineage=replace(spec.lineage, task=each.task),
        )
        if options.examples:
            from mfimage.capture.examples import record_examples

            recorded = record_examples(bound, options.examples, store, outside=environment.outside)
            if recorded.needed:
                more = _stored_environment(describe(recorded.needed), store)
                bound = replace(bound, environment=more)
            bound = replace(bound, examples=recorded.examples)
        specs.append(bound)
    return _each(store.write, specs)


def _each(call: Callable[[_T], _R], values: Iterable[_T]) -> list[_R]:
    """Call with each value; of several, some at once, since writing waits for disks or networks."""
    values = list(values)
    if len(values) == 1:
        return [call(values[0])]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(call, values))


def _distinct(
    copied: Mapping[str, Mapping[str, ArtifactRef]], store: PackageStore
) -> dict[str, StoredBytes]:
    """Return the artifacts; of those of one name in several tasks, those that name other code."""
    found: dict[str, StoredBytes] = {}
    known = set[tuple[str, frozenset[tuple[str, str]]]]()
    for function, artifacts in copied.items():
        for name, ref in artifacts.items():
            stored = StoredBytes(encoding=ref.encoding, open=partial(store.open_blob, ref))
            if len(copied) == 1:
                found[name] = stored
            elif (names := (name, named_globals(name, stored))) not in known:
                known.add(names)
                found[f"{name} of {function}" if name in found else name] = stored
    return found


def _check_main(
    info: TaskInfo, code: CapturedCode, scripts: list[str], artifacts: Mapping[str, StoredBytes]
) -> None:
    """Check that the flow's script defines what pickles name of ``__main__``."""
    known = defined_names(code.files[scripts[0]].read_bytes()) if len(scripts) == 1 else set()
    reason = f"that file is not included with {code.module}"
    if scripts:
        reason = f"importing {scripts[0]} does not define it"
    if scripts[1:]:
        reason = f"{' and '.join(scripts)} both define {info.flow}"
    script = info.metadata.get("script-name") or "a notebook"
    for artifact, stored in artifacts.items():
        for module, name in sorted(named_globals(artifact, stored)):
            top = name.partition(".")[0]
            if module == "__main__" and not {top, "*"} & known:
                file = (code.root or Path.cwd()) / f"{top.lower()}.py"
                raise CaptureError(
                    f"artifact {artifact!r} names __main__.{name} of {script}, and {reason}",
                    hint=f"move {top} to a file of its own, such as {file}, import it from there, "
                    "and run the flow again",
                )


def _schemas(function: DecoratedFunction) -> dict[str, Any]:
    schema = function.signature.schema
    input_schema, output_schema = schema.input_schema(), schema.output_schema()
    return {
        "input_schema": input_schema,
        "output_schema": output_schema,
        "schemas": function.package_schemas(input_schema, output_schema),
    }


def _task(task: Task | Current | str, options: BindOptions, needs: Needs) -> Any:
    from metaflow import current

    if task is current or (isinstance(task, str) and is_running(task)):
        running = running_task()
        if running is None:
            raise TaskError("task: no task is running here", hint="name one that has finished")
        return running
    if isinstance(task, str):
        return find_task(task, namespace=options.namespace, wanted=sorted(needs.required))
    if not hasattr(task, "metadata_dict"):
        message = f"task: expected a metaflow.Task or a pathspec, got {task!r}"
        raise TaskError(message, hint="write Task('Flow/run/step/task')")
    return task


def _stored_environment(environment: Environment, store: PackageStore) -> EnvironmentSpec:
    return EnvironmentSpec(
        python=environment.python,
        platform=environment.platform,
        source=environment.source,
        lock=store.put_bytes(environment.lock.data),
        wheels={name: store.put_file(path) for name, path in environment.lock.wheels.items()},
        system_packages=environment.system_packages,
        reasons=environment.reasons,
    )


def _lineage(info: TaskInfo, code: CapturedCode) -> Lineage:
    now = datetime.datetime.now(datetime.timezone.utc)
    return Lineage(
        flow=info.flow,
        run=info.run,
        step=info.step,
        task=info.task,
        user=info.metadata.get("user"),
        metaflow_version=info.metadata.get("metaflow_version"),
        git_commit=(code.root and packaged_commit(code.root)) or git_commit(code.root),
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
