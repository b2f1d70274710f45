"""build: function packages, or a step of a flow, + options -> an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfimage.errors import OptionError
from mfimage.image.build import build_image, plan_image, render_image
from mfimage.image.builder import OnEvent
from mfimage.image.plan.options import BuildOptions
from mfimage.image.report import Image
from mfimage.package.storage.cache import read_only
from mfimage.steps.capture import open_source

if TYPE_CHECKING:
    from mfimage.image.plan.preview import PlannedImage

Note = Callable[[str], None]


def build(
    references: str | Sequence[str],
    options: BuildOptions,
    *,
    push: bool = False,
    force: bool = False,
    test: bool = False,
    max_size: int | None = None,
    on_event: OnEvent = lambda _: None,
    note: Note = lambda _: None,
) -> Image:
    """Build an image.

    Parameters
    ----------
    references : str or sequence of str
        The function package, or several; for the target ``step``, ``file.py:step`` or
        ``file.py:Flow.step``.
    options : BuildOptions
        What to build.
    push : bool
        Push every tag afterwards.
    force : bool
        Build even if the registry already has the same image.
    test : bool
        Push the image only if it passes `mfimage test`.
    max_size : int, optional
        Fail if an image has more bytes.
    on_event : callable
        Called with each event of a step.
    note : callable
        Called with a line about what happens between steps.

    Returns
    -------
    Image
        Its digests, layers and timings.

    Raises
    ------
    MfimageError
        Naming what is wrong with a package, the options, the engine or a step.
    """
    if push and not options.tags:
        raise OptionError(
            "push: the image has no name", hint="give it one: --tag REGISTRY/NAME:TAG"
        )
    return build_image(
        open_source(references, options), options, push=push, force=force, test=test,
        max_size=max_size, on_event=on_event, note=note,
    )  # fmt: skip


def plan_build(
    references: str | Sequence[str],
    options: BuildOptions,
    *,
    push: bool = False,
    note: Note = lambda _: None,
) -> tuple[PlannedImage, ...]:
    """Describe what `build` would make for each platform, and why each layer would change.

    Parameters
    ----------
    references : str or sequence of str
        As for `build`.
    options : BuildOptions
        What would be built.
    push : bool
        Compare with what the registry has, not the engine.
    note : callable
        Called with a line about what happens between steps.

    Returns
    -------
    tuple of PlannedImage
        One for each platform.
    """
    with read_only():  # of a step, the environment that is solved is not kept
        return plan_image(open_source(references, options), options, push=push, note=note)


def render(references: str | Sequence[str], options: BuildOptions, folder: Path) -> Path:
    """Write the Dockerfile and its context; no engine is needed.

    Parameters
    ----------
    references : str or sequence of str
        As for `build`.
    options : BuildOptions
        What would be built.
    folder : Path
        Where to write; it must be empty or hold a context that was rendered before.

    Returns
    -------
    Path
        The folder.
    """
    return render_image(open_source(references, options), options, folder)
