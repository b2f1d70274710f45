"""Commands on packages and images that exist: show, compare, test, push and copy them."""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mfimage.cli.card import html_flag, write_page
from mfimage.cli.flags import build_flags, build_options, json_flag
from mfimage.cli.views import echo, print_view, show
from mfimage.terminal import shows_tables

if TYPE_CHECKING:
    from mfimage.image.checks.report import Check

DIFFERENT = 3  # not 1, by which every command says that it failed
_POSITIVE = click.FloatRange(min=0)
# The names of `PLATFORMS` in image/checks/platforms.py, whose import takes long.
CONTRACTS = ("oip", "kserve", "sagemaker", "vertex", "mlflow")
_TOLERANCE = "tolerance for floating-point numbers."

_platform_flag = click.option(
    "--platform", metavar="OS/ARCH", help="Image of an index to use; by default this machine's."
)


@click.command()
@click.argument("what", metavar="REFERENCE|IMAGE|TASK")
@_platform_flag
@html_flag
@click.option("--all", "everything", is_flag=True, help="Show everything that is known.")
@json_flag
def inspect(
    what: str, *, platform: str | None, html: str | None, everything: bool, as_json: bool
) -> None:
    """Describe a function package, an image, or the image that a task ran in.

    TASK is Flow/run/step[/task]. An image is in the engine, a registry (nothing is pulled),
    oci:DIR, oci-archive:FILE or docker-archive:FILE. Shows what it is, how large, and how to run
    it.
    """
    from mfimage.cli.about import about, columns
    from mfimage.inspect import inspect as inspect_it

    if html is not None:
        from mfimage.cli.console import note
        from mfimage.inspect import inspect_page

        write_page(html, partial(inspect_page, what, platform=platform, say=note))
        return
    found = inspect_it(what, platform=platform)
    if as_json:
        echo(json.dumps(found, indent=2, sort_keys=True))
    elif everything:
        show("inspect", found, text=partial(columns, found.items()))
    else:
        first = about(found, what)
        show("inspect", first, text=partial(columns, first.lines()))


@click.command()
@click.argument("reference")
@click.option("--diff", is_flag=True, help="Show how the running interpreter differs.")
@json_flag
def env(reference: str, diff: bool, as_json: bool) -> None:
    """Show the environment of a function.

    Lists its distributions, where they come from, and why each is there.
    """
    from mfimage.environment import report_environment

    found = report_environment(reference, diff=diff)
    show("env", found, document=found.to_dict(), text=found.to_text, as_json=as_json)


@click.command()
@click.argument("before", metavar="IMAGE")
@click.argument("after", metavar="IMAGE")
@_platform_flag
@click.option("--exit-code", is_flag=True, help=f"Exit with {DIFFERENT} if the images differ.")
@html_flag
@json_flag
def diff(
    before: str, after: str, *, platform: str | None, exit_code: bool, html: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what changed between two images.

    Compares distributions, artifacts, code, base and settings. Each image is in the engine, a
    registry (nothing is pulled), oci:DIR, oci-archive:FILE or docker-archive:FILE.
    """
    from mfimage.inspect import compare

    if html is not None:
        from mfimage.cli.console import note
        from mfimage.inspect import compare_page

        write_page(html, partial(compare_page, before, after, platform=platform, say=note))
    found = compare(before, after, platform=platform)
    if html is None or as_json:
        show("diff", found, document=found.to_dict(), text=found.to_text, as_json=as_json)
    if exit_code and found:
        click.get_current_context().exit(DIFFERENT)


@click.command("test")
@click.argument("image")
@click.option(
    "--timeout", type=_POSITIVE, default=60.0, show_default=True, metavar="SECONDS",
    help="Time that a container may take to become ready.",
)  # fmt: skip
@click.option("--rtol", type=_POSITIVE, metavar="NUMBER", help=f"Relative {_TOLERANCE}")
@click.option("--atol", type=_POSITIVE, metavar="NUMBER", help=f"Absolute {_TOLERANCE}")
@click.option(
    "--contract", "contracts", type=click.Choice(CONTRACTS), multiple=True,
    help="Platform whose contract is checked as well, in a container as it starts one; "
    "repeatable.",
)  # fmt: skip
@json_flag
def test(
    image: str, *, timeout: float, rtol: float | None, atol: float | None,
    contracts: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Run an image and check it.

    Calls it with the recorded examples and compares the results. Exits with 1 if a check fails.
    """
    from mfimage.cli.console import note
    from mfimage.image.checks.run import check_image
    from mfimage.image.checks.server import CheckOptions
    from mfimage.runtime.records.run import Tolerance

    tables = shows_tables() and not as_json

    def show_check(check: Check) -> None:
        if tables:
            from mfimage.cli.views import test as view

            print_view(view.check(check))
        elif check.status == "failed":  # all of it: the table has its first line only
            note(f"{check.name}: {check.detail}")

    given = {"relative": rtol, "absolute": atol}
    tolerance = Tolerance(**{name: value for name, value in given.items() if value is not None})
    options = CheckOptions(
        timeout=timeout, tolerance=tolerance, contracts=tuple(dict.fromkeys(contracts))
    )
    report = check_image(image, options, say=note, on_check=show_check)
    if tables:
        from mfimage.cli.views import test as view

        print_view(view.summary(report))
    else:
        echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_text())
        note(f"{image}: {report.summary}")
    if report.failed:
        click.get_current_context().exit(1)


@click.command()
@click.argument("image")
@click.option(
    "--reference", "references", required=True, multiple=True, metavar="REFERENCE",
    help="Function package that IMAGE was built from. Repeatable.",
)  # fmt: skip
@json_flag
@build_flags("verify")
def verify(image: str, *, references: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Build an image again and compare.

    Shows which layers and files differ. IMAGE records its lock, base and target. Other options,
    such as --env, must be given as they were for the build. Exits with 1 if anything differs.
    """
    from mfimage.cli.console import note
    from mfimage.verify import verify as verify_image

    found = verify_image(image, references, build_options(given), say=note)
    show("verify", found, document=found.to_dict(), text=found.to_text, as_json=as_json)
    note(f"{image}: {'the same' if found.same else 'differs'}")
    if not found.same:
        click.get_current_context().exit(1)


@click.command()
@click.argument("image", metavar="IMAGE")
@click.argument("tags", nargs=-1, required=True, metavar="REGISTRY/NAME[:TAG]...")
def push(image: str, tags: tuple[str, ...]) -> None:
    """Push an image that exists; print its digest.

    IMAGE is in the engine, oci:DIR, oci-archive:FILE or docker-archive:FILE. Prints
    repository@digest of each tag.
    """
    from mfimage.cli.console import BuildStory, note, show
    from mfimage.image.registry.reference import parse_tag
    from mfimage.push import push as push_image

    parsed = [parse_tag(tag) for tag in tags]
    with show(BuildStory) as on_event:
        pushed = push_image(image, parsed, on_event=on_event, say=note)
    on_event.summary("pushed")
    for digest in dict.fromkeys(pushed):
        click.echo(digest)


@click.command()
@click.argument("reference")
@click.argument("url")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
    help="Blobs to copy at the same time.",
)  # fmt: skip
def copy(reference: str, url: str, jobs: int) -> None:
    """Copy a function package to another root.

    URL is a folder or the URL of one. Prints the package's reference there.
    """
    from mfimage.cli.console import CopyStory, show
    from mfimage.copy import copy_package

    try:
        with show(CopyStory) as story:
            copied = copy_package(reference, url, on_progress=story, jobs=jobs)
        story.summary()
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        click.get_current_context().find_root().call_on_close(lambda: _exit_at_once(code))
        raise
    click.echo(copied)


def _exit_at_once(code: int) -> None:
    """Exit without threads that wait for a server, for which Python would wait."""
    # The error is printed by then, and nothing half-written looks whole.
    from mfimage.copy import THREADS

    if any(thread.name.startswith(THREADS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
