"""The command line: parse, one library call, print.

stdout is the result, stderr the story. Everything heavy is imported by the command that uses it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mfimage import __version__
from mfimage.cli.arguments import bind_options, build_options
from mfimage.cli.ci import diff, plan, show_plan, write_files
from mfimage.cli.copy import copy
from mfimage.cli.flags import bind_flags, build_flags, builder_flags, pipeline_flags
from mfimage.cli.kuberay import kuberay
from mfimage.cli.push import push as push_command
from mfimage.cli.run import call, map_, serve
from mfimage.cli.test import test, verify
from mfimage.errors import MfimageError, OptionError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Group(click.Group):
    """Turns errors into two lines and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if debug:
                raise
            _tell(error)
            ctx.exit(1)


def _tell(error: Exception) -> None:
    if isinstance(error, MfimageError):
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        return
    kind = type(error)
    if kind.__module__.startswith("metaflow"):
        click.echo(f"error: Metaflow: {error}", err=True)
        return
    click.echo(f"error: {kind.__name__}: {error}", err=True)
    click.echo(
        "hint: mfimage did not expect this; run `mfimage --debug ...` to see where", err=True
    )


@click.group(cls=_Group, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="mfimage")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Package a Metaflow Function as an OCI image.

    bind a function to a task, build an image from it, run it anywhere.
    """


@main.command()
@click.argument("function")
@click.option("--task", required=True, metavar="FLOW[/RUN[/STEP[/TASK]]]", help="What to bind to.")
@bind_flags
def bind(function: str, task: str, **given: Any) -> None:
    """Bind FUNCTION (file.py:name or module:name) to a finished task; print the reference."""
    click.echo(_bind(function, task, given))


def _bind(function: str, task: str, given: dict[str, Any]) -> str:
    from mfimage.capture.code.interpreter import early_interpreter

    with early_interpreter():
        return _bind_named(function, task, given)


def _bind_named(function: str, task: str, given: dict[str, Any]) -> str:
    from mfimage.bind import bind as bind_function
    from mfimage.capture.code.named import find_function
    from mfimage.cli.console import say
    from mfimage.package.store import open_package

    options = bind_options(given)
    place = {"namespace": options.namespace, "code": given["code"]}
    with find_function(function, task=task, **place) as found:
        if found.package:
            say(f"{function} is taken from the code package of {found.package}")
        reference = bind_function(found.function, task, options)
    spec = open_package(reference).spec
    say(
        f"bound {spec.name} to {spec.task}: {len(spec.artifacts)} artifacts, "
        f"environment from {spec.environment.source}, Python {spec.environment.python_minor}"
    )
    return reference


@main.command()
@click.argument("function")
@click.option("--task", metavar="FLOW[/RUN[/STEP[/TASK]]]", help="Bind FUNCTION to it first.")
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Name of the image.")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--push", is_flag=True, help="Push every tag; print repository@digest.")
@click.option("--force", is_flag=True, help="Build even if the registry has the very image.")
@click.option("--test", is_flag=True, help="Test the image; push it only if it passes.")
@builder_flags
@pipeline_flags
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the steps print.")
@build_flags
@bind_flags
def build(
    function: str,
    *,
    task: str | None,
    as_json: bool,
    push: bool,
    force: bool,
    test: bool,
    verbose: bool,
    dry_run: bool,
    max_size: str | None,
    **given: Any,
) -> None:
    """Build an image from a REFERENCE, or from FUNCTION (file.py:name) and --task; print it."""
    from mfimage.build import build as build_image
    from mfimage.cli.console import say, story
    from mfimage.sizes import parse_size

    options = build_options(given)
    most = parse_size(max_size, field="max-size") if max_size else None
    reference = _reference(function, task, given)
    if dry_run:
        show_plan(reference, options, push=push, as_json=as_json)
        return
    with story(verbose=verbose) as on_event:
        image = build_image(
            reference, options, push=push, force=force, test=test, max_size=most,
            on_event=on_event, say=say,
        )  # fmt: skip
    found = image.to_dict()
    write_files(found, given["iidfile"], given["metadata_file"])
    click.echo(json.dumps(found, indent=2) if as_json else image.name)


def _reference(function: str, task: str | None, given: dict[str, Any]) -> str:
    if task is not None:
        return _bind(function, task, given)
    place, _, name = function.rpartition(":")
    if place and name.isidentifier() and not Path(function).exists():
        raise OptionError(
            f"{function!r} is a function, not yet bound", hint="name the task: --task FLOW"
        )
    return function


@main.command()
@click.argument("reference")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), metavar="DIR")
@build_flags
def render(reference: str, output: str, **given: Any) -> None:
    """Write the Dockerfile and its context to DIR.

    `docker build DIR` gives the same image, but for what its SBOM says of the base.
    """
    from mfimage.build import render as render_context

    click.echo(render_context(reference, build_options(given), Path(output)))


@main.command()
@click.argument("what", metavar="REFERENCE|IMAGE")
@click.option("--platform", metavar="OS/ARCH", help="Which of an index; this machine's by default.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(what: str, platform: str | None, as_json: bool) -> None:
    """Show what a function package or an image is: the engine's, a registry's, or in oci:DIR."""
    from mfimage.inspect import inspect as inspect_it

    found = inspect_it(what, platform=platform)
    if as_json:
        click.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:<{width}}  {text}")


@main.command()
@click.argument("reference")
@click.option("--diff", is_flag=True, help="Tell how the running interpreter differs.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def env(reference: str, diff: bool, as_json: bool) -> None:
    """Show the environment of a function: what is in it, from where, and why."""
    from mfimage.environment import report_environment

    found = report_environment(reference, diff=diff)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.to_text())


for command in (plan, diff, push_command, copy, serve, call, map_, kuberay, test, verify):
    main.add_command(command)
