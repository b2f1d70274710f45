"""Commands for pipelines: what would be built, and what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli.arguments import build_options
from mfimage.cli.flags import build_flags, builder_flags

if TYPE_CHECKING:
    from mfimage.image.plan.options import BuildOptions

# Apart from 1, by which every command says that it failed.
DIFFERENT = 3


@click.command()
@click.argument("reference")
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Name of the image.")
@builder_flags
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@build_flags
def plan(reference: str, as_json: bool, **given: Any) -> None:
    """Tell what a build would make, and why each layer would differ from what --tag names now."""
    show_plan(reference, build_options(given), push=False, as_json=as_json)


def show_plan(reference: str, options: BuildOptions, *, push: bool, as_json: bool) -> None:
    """Print what a build would make."""
    from mfimage.build import plan_build
    from mfimage.cli.console import say

    found = plan_build(reference, options, push=push, say=say)
    if as_json:
        click.echo(json.dumps([image.to_dict() for image in found], indent=2))
    else:
        click.echo("\n\n".join(image.to_text() for image in found))


def write_files(found: Mapping[str, Any], iidfile: str | None, metadata_file: str | None) -> None:
    """Write what was built into the files that were asked for."""
    from mfimage.image.report import write_id, write_metadata

    if iidfile:
        write_id(Path(iidfile), found)
    if metadata_file:
        write_metadata(Path(metadata_file), found)


@click.command()
@click.argument("before", metavar="IMAGE")
@click.argument("after", metavar="IMAGE")
@click.option("--platform", metavar="OS/ARCH", help="Which of an index; this machine's by default.")
@click.option("--exit-code", is_flag=True, help=f"Exit with {DIFFERENT} if they differ.")
@click.option("--json", "as_json", is_flag=True, help="Print every difference as JSON.")
def diff(before: str, after: str, platform: str | None, exit_code: bool, as_json: bool) -> None:
    """Tell what changed between two images: distributions, artifacts, code, base, settings.

    Each is the engine's, a registry's (nothing is pulled), or in oci:DIR, oci-archive:FILE or
    docker-archive:FILE.
    """
    from mfimage.inspect import compare

    found = compare(before, after, platform=platform)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.to_text())
    if exit_code and found:
        click.get_current_context().exit(DIFFERENT)
