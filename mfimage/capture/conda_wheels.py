"""Conda packages as wheels: the same versions, and what has none is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mfimage.capture.conda_manifest import CondaPackage
from mfimage.capture.indexes import IndexOptions
from mfimage.capture.target import Target
from mfimage.capture.uv import compile_pylock
from mfimage.capture.uv_errors import Unsolved
from mfimage.errors import LockError

_ASKED_AT_ONCE = 4


def require_wheels(
    packages: Sequence[CondaPackage], target: Target, *, index: IndexOptions, directory: Path
) -> list[str]:
    """Return the requirements for the wheels of conda packages.

    Parameters
    ----------
    packages : sequence of CondaPackage
        What conda resolved, without what comes along with Python and with wheels.
    target : Target
        What the wheels have to fit.
    index, directory
        As in ``lock_requirements``.

    Raises
    ------
    LockError
        Naming those that have no wheel.
    """

    def has_wheels(pins: Iterable[str]) -> bool:
        text = "\n".join(pins)
        try:
            compile_pylock(
                text, target=target, directory=directory, index=index, alone=True, builds=False
            )
        except Unsolved:
            return False
        return True

    pins = {each.requirement: each for each in packages if each.requirement is not None}
    lost = [each for each in packages if each.requirement is None]
    if not has_wheels(pins):
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            found = list(pool.map(lambda pin: has_wheels([pin]), pins))
        lost += [each for each, has in zip(pins.values(), found, strict=True) if not has]
    if lost:
        raise LockError(
            "the step's @conda has packages that have no wheel: "
            f"{', '.join(sorted(str(each) for each in lost))}",
            hint="use @pypi for the step, or name the environment with environment=",
        )
    return list(pins)
