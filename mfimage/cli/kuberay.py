"""Commands that write manifests for KubeRay."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click

from mfimage.cli.flags import Command, options
from mfimage.manifests.kuberay import KINDS


class _Kinds(click.Group):
    """Makes a command when it is called: `mfimage --help` does not import its options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(KINDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in KINDS else None


@click.group(cls=_Kinds)
def kuberay() -> None:
    """Write manifests for an image of target ray; `| kubectl apply -f -` runs it on Kubernetes."""


def _command(kind: str) -> click.Command:
    from mfimage.cli.console import note
    from mfimage.manifests.kuberay.image import read_ray_image
    from mfimage.manifests.kuberay.options import ClusterOptions, Stated
    from mfimage.manifests.options import read_options

    module: Any = importlib.import_module(f"mfimage.manifests.kuberay.{kind}")
    own, prefix = module.OPTIONS, module.PREFIX

    def run(image: str, **given: Any) -> None:
        # Options first: checking them takes no time.
        more = [read_options(own, given, prefix)] if own else []
        cluster = read_options(ClusterOptions, given)
        found = read_ray_image(image, read_options(Stated, given), say=note)
        click.echo(module.write(found, cluster, *more), nl=False)

    flags = [_flags(Stated), _flags(ClusterOptions)]
    flags += [_flags(own, prefix)] if own else []
    summary = module.write.__doc__.partition("\n")[0].replace("``", "")
    return click.command(kind, help=summary)(options(click.argument("image"), *flags)(run))


def _flags(kind: type, prefix: str = "") -> Callable[[Command], Command]:
    from mfimage.manifests.options import flags

    made = []
    for names, about in flags(kind, prefix):
        if choices := about.pop("choices"):
            about["type"] = click.Choice(choices)
        made.append(click.option(*names, show_default=True, **about))
    return options(*made)
