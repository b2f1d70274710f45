"""Commands for the steps of flows."""

from __future__ import annotations

from pathlib import Path

import click

from mfimage.errors import OptionError


@click.command()
@click.argument("step", metavar="FILE.py:STEP")
@click.option("--image", help="Open this image; by default the step's own is built now.")
@click.option("--force", is_flag=True, help="Replace a file that differs.")
def devcontainer(step: str, image: str | None, force: bool) -> None:
    """Write a devcontainer.json that opens a step's environment in an editor; print its path.

    It is .devcontainer/STEP/devcontainer.json in this folder.
    """
    from mfimage.steps.devcontainer import write

    file, _, name = step.rpartition(":")
    if not Path(file).is_file():
        raise OptionError(f"step: there is no file {file!r}", hint="write file.py:step")
    flow, _, name = name.rpartition(".")  # ``file.py:Flow.step`` where a file has several flows
    title = f"{flow or Path(file).stem}/{name}"
    path = write(Path.cwd(), name, image=image or _image(step), title=title, overwrite=force)
    click.echo(path.relative_to(Path.cwd()))


def _image(step: str) -> str:
    from mfimage.steps.images import image_of

    return image_of(step)
