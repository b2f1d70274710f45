"""The command line: parse, one library call, print.

stdout is the result, stderr the story. Everything heavy is imported by the command that uses it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mfimage import __version__
from mfimage.arguments import bind_options, build_options
from mfimage.errors import MfimageError, OptionError

Command = TypeVar("Command", bound=Callable[..., Any])
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


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_bind_flags = _options(
    click.option("--name", help="Name of the function package; the function's own by default."),
    click.option(
        "--artifact", "artifacts", multiple=True, metavar="NAME",
        help="Artifact that goes along; by default those that the function reads.",
    ),
    click.option(
        "--environment", type=click.Path(dir_okay=False), metavar="FILE",
        help="requirements, pylock.toml or uv.lock that describes the environment.",
    ),
    click.option(
        "--example", "examples", multiple=True, metavar="JSON",
        help="Record to run the function on; @FILE reads a line each.",
    ),
    click.option(
        "--param", "params", multiple=True, metavar="NAME=JSON",
        help="Value that takes the place of an artifact.",
    ),
    click.option("--root", metavar="DIR", help="Where packages are kept."),
    click.option("--namespace", help="Metaflow namespace to look in; '' is the global one."),
)  # fmt: skip

_build_flags = _options(
    click.option("--target", default=None, help="Interface of the image: fastapi."),
    click.option("--base-image", metavar="IMAGE", help="python:<minor>-slim by default."),
    click.option("--apt", multiple=True, metavar="PACKAGE", help="Debian package to install."),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable of the image."),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="Label of the image."),
    click.option("--platform", metavar="OS/ARCH", help="linux/amd64 or linux/arm64."),
    click.option(
        "--secret", multiple=True, metavar="id=ID,src=FILE|env=VAR",
        help="Credential for the dependency step: ca, netrc, pip.conf, or a UV_ variable.",
    ),
    click.option("--index-url", metavar="URL", help="Package index to install from."),
    click.option("--extra-index-url", multiple=True, metavar="URL", help="Index beside it."),
)  # fmt: skip


@main.command()
@click.argument("function")
@click.option("--task", required=True, metavar="FLOW[/RUN[/STEP[/TASK]]]", help="What to bind to.")
@_bind_flags
def bind(function: str, task: str, **given: Any) -> None:
    """Bind FUNCTION (file.py:name or module:name) to a finished task; print the reference."""
    click.echo(_bind(function, task, given))


def _bind(function: str, task: str, given: dict[str, Any]) -> str:
    from mfimage.bind import bind as bind_function
    from mfimage.capture.source import load_decorated
    from mfimage.console import say
    from mfimage.package.store import open_package

    options = bind_options(given)
    reference = bind_function(load_decorated(function), task, options)
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
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the steps print.")
@_build_flags
@_bind_flags
def build(
    function: str, task: str | None, as_json: bool, push: bool, verbose: bool, **given: Any
) -> None:
    """Build an image from a REFERENCE, or from FUNCTION (file.py:name) and --task; print it."""
    from mfimage.build import build as build_image
    from mfimage.console import say, story

    options = build_options(given)
    reference = _reference(function, task, given)
    with story(verbose=verbose) as on_event:
        image = build_image(reference, options, push=push, on_event=on_event, say=say)
    if as_json:
        click.echo(json.dumps(image.to_dict(), indent=2))
    else:
        click.echo(image.name)


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
@_build_flags
def render(reference: str, output: str, **given: Any) -> None:
    """Write the Dockerfile and its context to DIR; `docker build DIR` gives the same image."""
    from mfimage.build import render as render_context

    click.echo(render_context(reference, build_options(given), Path(output)))


@main.command()
@click.argument("reference")
@click.option("--host", help="Address to listen on; MFIMAGE_HOST.")
@click.option("--port", type=int, help="Port to listen on; PORT.")
def serve(reference: str, host: str | None, port: int | None) -> None:
    """Serve the function over HTTP on this machine, as its image would."""
    given = {"MFIMAGE_HOST": host, "PORT": port}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    _runtime(reference, "serve")


@main.command()
@click.argument("reference")
def call(reference: str) -> None:
    """Call the function with each JSON line of stdin; print a JSON line for each."""
    _runtime(reference, "call")


def _runtime(reference: str, command: str) -> None:
    """Run the image's own entrypoint on a package, in this process."""
    from mfimage.package.store import open_package
    from mfimage.package.unpack import unpack
    from mfimage.runtime.__main__ import main as run

    package = open_package(reference)
    with tempfile.TemporaryDirectory(prefix="mfimage-") as folder:
        unpack(package.spec, package.store, Path(folder))
        os.environ["MFIMAGE_FUNCTION"] = folder
        code = run([command])
    sys.exit(code)


@main.command()
@click.argument("what", metavar="REFERENCE|IMAGE")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(what: str, as_json: bool) -> None:
    """Show what a function package or an image is."""
    from mfimage.inspection import inspect as inspect_it

    found = inspect_it(what)
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
    from mfimage.environment_report import report_environment

    found = report_environment(reference, diff=diff)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.to_text())


if __name__ == "__main__":
    main()
