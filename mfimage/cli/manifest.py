"""The commands that write manifests: one for each kind."""

from __future__ import annotations

from typing import Any

import click

from mfimage.cli.flags import options
from mfimage.manifests import KINDS


class _Kinds(click.Group):
    """Makes a command when it is called: `mfimage --help` does not import its options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(KINDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in KINDS else None


class _KindCommand(click.Command):
    """Names the kinds that have an option which this one does not have."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from mfimage.manifests.kind import kinds_with

            if kinds := kinds_with(error.option_name):
                which = ", ".join(kinds)
                text = f"{error.option_name}: {self.name} does not have it; these do: {which}"
                raise click.UsageError(text, ctx) from None
            raise


@click.group(cls=_Kinds)
def manifest() -> None:
    """Write a manifest that runs an image on Kubernetes or with Docker Compose.

    Prints YAML, for `kubectl apply -f -` or a file.
    """


def _command(name: str) -> click.Command:
    from mfimage.cli.console import note
    from mfimage.manifests.kind import find_kind

    kind = find_kind(name)

    def run(image: str, **given: Any) -> None:
        click.echo(kind.make(image, given, say=note), nl=False)

    flags = []
    for names, about in kind.flags():
        if choices := about.pop("choices"):
            about["type"] = click.Choice(choices)
        flags.append(click.option(*names, show_default=True, **about))
    decorate = options(click.argument("image"), *flags)
    return click.command(name, cls=_KindCommand, help=kind.summary)(decorate(run))
