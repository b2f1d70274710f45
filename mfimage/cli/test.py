"""Test an image, and build it again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli.flags import build_flags

if TYPE_CHECKING:
    from mfimage.image.checks.report import Check


@click.command("test")
@click.argument("image")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Until it has to be ready.",
)
@click.option("--rtol", type=click.FloatRange(min=0), metavar="NUMBER", help="Relative tolerance.")
@click.option("--atol", type=click.FloatRange(min=0), metavar="NUMBER", help="Absolute tolerance.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def test(
    image: str, *, timeout: float, rtol: float | None, atol: float | None, as_json: bool
) -> None:
    """Run IMAGE, call it, and compare it with what was recorded; exit code 1 if a check fails."""
    from mfimage.cli.console import say
    from mfimage.image.checks.run import check_image
    from mfimage.image.checks.server import CheckOptions
    from mfimage.runtime.records.run import Tolerance

    given = {"relative": rtol, "absolute": atol}
    tolerance = Tolerance(**{name: value for name, value in given.items() if value is not None})
    options = CheckOptions(timeout=timeout, tolerance=tolerance)
    report = check_image(image, options, say=say, on_check=tell_fault)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
    say(f"{image}: {report.summary}")
    if report.failed:
        click.get_current_context().exit(1)


def tell_fault(check: Check) -> None:
    """Show all of what a failed check has to say: the table has the first line."""
    from mfimage.cli.console import say

    if check.status == "failed":
        say(f"{check.name}: {check.detail}")


@click.command()
@click.argument("image")
@click.option("--reference", required=True, help="The function package that it was built from.")
@click.option("--compile", is_flag=True, help="It was built with --compile.")
@click.option("--json", "as_json", is_flag=True, help="Print what differs as JSON.")
@build_flags
def verify(image: str, *, reference: str, as_json: bool, **given: Any) -> None:
    """Build IMAGE again from its function package; tell which layers and files differ.

    The lock, the base and the target are those that the image names; what it does not say, as
    --env, is to be given as it was. Exit code 1 if anything differs.
    """
    from mfimage.cli.arguments import build_options
    from mfimage.cli.console import say
    from mfimage.verify import verify as verify_image

    found = verify_image(image, reference, build_options(given), say=say)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.to_text())
    say(f"{image}: {'the same' if found.same else 'differs'}")
    if not found.same:
        click.get_current_context().exit(1)
