"""Commands that make packages and images: bind, build, plan, render."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli import flags
from mfimage.cli.flags import build_options, json_flag
from mfimage.cli.views import show
from mfimage.errors import OptionError

if TYPE_CHECKING:
    from mfimage.image.plan.options import BuildOptions

_TASK = "FLOW[/RUN[/STEP[/TASK]]]"
STEP = "step"  # the target


@click.command()
@click.argument("function")
@click.option("--task", required=True, metavar=_TASK, help="Task to bind FUNCTION to.")
@flags.foreach_flag
@flags.bind_flags
def bind(function: str, task: str, foreach: bool, **given: Any) -> None:
    """Bind a function to a finished task.

    FUNCTION is file.py:name or module:name. Prints the reference of the function package; with
    --foreach, that of each.
    """
    before = {*threading.enumerate()}
    click.echo("\n".join(_bind(function, task, given, foreach=foreach)))
    if any(not thread.daemon for thread in {*threading.enumerate()} - before):
        sys.stdout.flush()
        os._exit(0)  # the function's module started it: it would never end


def _bind(function: str, task: str, given: dict[str, Any], *, foreach: bool) -> list[str]:
    from mfimage.capture.code.interpreter import early_interpreter
    from mfimage.runtime.records.streams import results

    with early_interpreter(), results("-"):  # what the module prints is not the reference
        from mfimage.bind import bind as bind_function
        from mfimage.bind import bind_foreach
        from mfimage.capture.code.named import find_function
        from mfimage.cli.console import note
        from mfimage.package.store import open_package

        wanted = flags.bind_options(given)
        place = {"namespace": wanted.namespace, "code": given["code"]}
        with find_function(function, task=task, **place) as found:
            if found.package:
                note(f"{function} is taken from the code package of {found.package}")
            if foreach:
                references = bind_foreach(found.function, task, wanted)
            else:
                references = [bind_function(found.function, task, wanted)]
    spec, more = open_package(references[0]).spec, len(references) - 1
    others = f" (and {more} more to the other tasks)" if more else ""
    note(
        f"bound {spec.name} to {spec.task}{others}: {len(spec.artifacts)} artifacts, "
        f"environment from {spec.environment.source}, Python {spec.environment.python_minor}"
    )
    return references


_pipeline_flags = flags.options(
    click.option("--push", is_flag=True, help="Push every tag; print repository@digest."),
    click.option(
        "--force", is_flag=True, help="Build even if the registry already has the same image."
    ),
    click.option("--test", is_flag=True, help="Test the image; push it only if it passes."),
    click.option("--dry-run", is_flag=True, help="Show what would be built; build nothing."),
    click.option(
        "--max-size", metavar="SIZE", help="Fail if the image is larger, such as 500MB or 1GiB."
    ),
    click.option(
        "--iidfile", type=click.Path(dir_okay=False), metavar="FILE",
        help="Write the image's ID to a file.",
    ),
    click.option(
        "--metadata-file", type=click.Path(dir_okay=False), metavar="FILE",
        help="Write the report of the build to a file, as JSON.",
    ),
    json_flag,
    click.option("-v", "--verbose", is_flag=True, help="Show the output of each step."),
)  # fmt: skip


@click.command()
@click.argument("functions", metavar="FUNCTION...", nargs=-1, required=True)
@click.option("--task", metavar=_TASK, help="Task to bind FUNCTION to first.")
@flags.foreach_flag
@flags.build_flags("build")
@_pipeline_flags
@flags.bind_flags
def build(
    functions: tuple[str, ...],
    *,
    task: str | None,
    foreach: bool,
    as_json: bool,
    push: bool,
    force: bool,
    test: bool,
    verbose: bool,
    dry_run: bool,
    max_size: str | None,
    iidfile: str | None,
    metadata_file: str | None,
    **given: Any,
) -> None:
    """Build an image; print its name.

    FUNCTION is the reference of a function package; with --task, file.py:name or module:name;
    with --target step, a flow's step as file.py:step. Several functions give one image, which
    serves each by its name.
    """
    from mfimage.build import build as build_image
    from mfimage.cli.console import BuildStory, note, show
    from mfimage.image.report import write_id, write_metadata
    from mfimage.sizes import parse_size

    wanted = build_options(given)
    limit = parse_size(max_size, field="max-size") if max_size else None
    if dry_run:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="mfimage-") as folder:  # for the package
            given["root"] = folder
            references = _references(functions, task, given, wanted, foreach=foreach)
            _show_plan(references, wanted, push=push, as_json=as_json)
        return
    references = _references(functions, task, given, wanted, foreach=foreach)
    with show(BuildStory, verbose=verbose) as on_event:
        image = build_image(
            references, wanted, push=push, force=force, test=test, max_size=limit,
            on_event=on_event, note=note,
        )  # fmt: skip
    layers = [layer for made in image.images for layer in made.layers if layer.name != "base"]
    on_event.summary("built", layers)
    report = image.to_dict()
    if iidfile:
        write_id(Path(iidfile), report)
    if metadata_file:
        write_metadata(Path(metadata_file), report)
    click.echo(json.dumps(report, indent=2) if as_json else image.name)


def _references(
    functions: Sequence[str],
    task: str | None,
    given: dict[str, Any],
    wanted: BuildOptions,
    *,
    foreach: bool,
) -> list[str]:
    """Return what to build: references, those of functions bound now, or a step."""
    if foreach and task is None:
        raise OptionError(
            "foreach: there is no step to bind to", hint="name it: --task Flow/run/step"
        )
    if wanted.target == STEP:
        if task is not None:
            raise OptionError(
                f"task: a step is built from its file: {functions[0]}", hint="leave out --task"
            )
        return list(functions)
    if task is None:
        return [_bound(each) for each in functions]
    if given["name"] and functions[1:]:
        raise OptionError(
            f"name: {given['name']} cannot be the name of {len(functions)} functions",
            hint="leave out --name, or bind each by mfimage bind --name",
        )
    return [each for one in functions for each in _bind(one, task, given, foreach=foreach)]


def _bound(reference: str) -> str:
    """Return a reference; refuse a function that is not bound."""
    place, _, name = reference.rpartition(":")
    if place and name.isidentifier() and not Path(reference).exists():
        raise OptionError(
            f"{reference!r} is a function, not a reference", hint="name its task: --task FLOW"
        )
    return reference


@click.command()
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@flags.build_flags("plan")
@json_flag
def plan(references: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Show what a build would make, and why.

    REFERENCE is a function package; with --target step, file.py:step. Each layer is compared with
    the image that --tag names now.
    """
    _show_plan(references, build_options(given), push=False, as_json=as_json)


def _show_plan(
    references: Sequence[str], wanted: BuildOptions, *, push: bool, as_json: bool
) -> None:
    from mfimage.build import plan_build
    from mfimage.cli.console import note

    found = plan_build(references, wanted, push=push, note=note)
    show(
        "plan", found, document=[image.to_dict() for image in found], as_json=as_json,
        text=lambda: "\n\n".join(image.to_text() for image in found),
    )  # fmt: skip


@click.command()
@click.argument("references", metavar="REFERENCE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(file_okay=False), metavar="DIR",
    help="Folder to write to: new, empty, or rendered before.",
)  # fmt: skip
@flags.build_flags("render")
def render(references: tuple[str, ...], folder: str, **given: Any) -> None:
    """Write the Dockerfile and its context.

    `docker build` of it gives the same image, except for what the SBOM records of the base.
    """
    from mfimage.build import render as render_context

    click.echo(render_context(references, build_options(given), Path(folder)))
