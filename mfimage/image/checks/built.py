"""Testing the images of a build before they are pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mfimage.errors import CheckError, OptionError
from mfimage.image.builder import DOCKER, Builder, BuiltImage
from mfimage.image.checks.report import Report
from mfimage.image.checks.run import check_image
from mfimage.image.registry.location import OCI, Location
from mfimage.package.platforms import machine_platform


def check_built(
    builder: Builder, images: Sequence[BuiltImage], *, say: Callable[[str], None]
) -> tuple[Report, ...]:
    """Test the images that this machine can run, and name the others; fail if a check does."""
    here = machine_platform()
    ours = [image for image in images if image.platform == here]
    if not ours:
        built = ", ".join(image.platform for image in images)
        raise OptionError(
            f"test: an image for {built} cannot be run here, on {here}",
            hint="build without --test, and run `mfimage test` on a machine of that platform",
        )
    for image in images:
        if image not in ours:
            say(f"the image for {image.platform} is not tested: this is {here}")
    return tuple(_tested(builder, image, say) for image in ours)


def _tested(builder: Builder, image: BuiltImage, say: Callable[[str], None]) -> Report:
    with placed(builder, image) as name:
        report = check_image(name, say=say)
    say(report.to_text())
    if report.failed:
        for check in report.failed:
            say(f"{check.name}: {check.detail}")
        names = ", ".join(check.name for check in report.failed)
        raise CheckError(
            f"the image does not pass its test: {names}",
            hint="nothing was pushed; the lines above say what was found",
        )
    return report


@contextmanager
def placed(builder: Builder, image: BuiltImage) -> Iterator[str]:
    """Yield the name by which `find_image` finds an image that was built, until the block ends."""
    if builder.name == DOCKER:
        yield image.id
        return
    with TemporaryDirectory(prefix="mfimage-") as folder:
        place = Location(kind=OCI, path=Path(folder) / "layout")
        builder.write([image], place, ())
        yield str(place)
