"""Commands for the steps of flows."""

from __future__ import annotations

import re
from pathlib import Path

import click

from mfimage.cli.flags import build_options
from mfimage.errors import OptionError


@click.command()
@click.argument("step", metavar="FILE.py:STEP")
@click.option("--image", help="Open this image; by default the step's own is built now.")
@click.option("--tag", "-t", help="Give the image that is built this name.")
@click.option("--force", is_flag=True, help="Replace a file that differs.")
def devcontainer(step: str, image: str | None, tag: str | None, force: bool) -> None:
    """Write a devcontainer.json that opens a step's environment in an editor; print its path.

    It is .devcontainer/STEP/devcontainer.json in this folder.
    """
    from mfimage.steps.devcontainer import write

    file, _, name = step.rpartition(":")
    if not Path(file).is_file():
        raise OptionError(f"step: there is no file {file!r}", hint="write file.py:step")
    flow, _, name = name.rpartition(".")  # ``file.py:Flow.step`` where a file has several flows
    title = f"{flow or Path(file).stem}/{name}"
    if image is None:
        image = _image(step, tag or "devcontainer-" + re.sub(r"[^a-z0-9]+", "-", title.lower()))
    path = write(Path.cwd(), name, image=image, title=title, overwrite=force)
    click.echo(path.relative_to(Path.cwd()))


def _image(step: str, tag: str) -> str:
    from mfimage.build import build
    from mfimage.cli.console import BuildStory, note, show

    options = build_options({"target": "step", "tags": (tag,)})
    with show(BuildStory) as on_event:
        build(step, options, on_event=on_event, note=note)
    return tag
