"""The command line: parse, one library call, print.

stdout is the result, stderr everything else. Everything heavy is imported by the command that
uses it.
"""

from __future__ import annotations

from typing import Any

import click

from mfimage import __version__
from mfimage.cli.build import bind, build, plan, render
from mfimage.cli.card import card
from mfimage.cli.images import copy, diff, env, inspect, push, test, verify
from mfimage.cli.manifest import manifest
from mfimage.cli.run import call, map_, serve
from mfimage.cli.steps import devcontainer
from mfimage.errors import MfimageError
from mfimage.terminal import visible

_LAYOUT = "\n\t"  # that an error may have


class _Group(click.Group):
    """Turns errors into two lines and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            message, hint = f"Metaflow: {error}", None
            if isinstance(error, MfimageError):
                message, hint = error.message, error.hint
            elif not type(error).__module__.startswith("metaflow"):
                message = f"{type(error).__name__}: {error}"
                hint = "this is a bug in mfimage; run `mfimage --debug ...` to see where"
            click.echo(f"error: {visible(message, keep=_LAYOUT)}", err=True)
            if hint:
                click.echo(f"hint: {visible(hint, keep=_LAYOUT)}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="mfimage")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Package a Metaflow Function as an OCI image.

    bind a function to a task, build an image from it, run it anywhere.
    """


for command in (
    bind, build, plan, render, inspect, card, env, diff, test, verify, push, copy, serve, call,
    map_, manifest, devcontainer,
):  # fmt: skip
    main.add_command(command)
