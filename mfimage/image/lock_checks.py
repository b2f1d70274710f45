"""What can be said of a lock and its wheels before anything is built."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mfimage.errors import LockError, OptionError
from mfimage.image.options import refuse_credentials
from mfimage.package.spec import FunctionSpec

if TYPE_CHECKING:
    from packaging.tags import Tag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


def check_wheels(spec: FunctionSpec, platform: str) -> None:
    """Refuse wheels that travel with a function and do not run on the image's platform.

    Raises
    ------
    LockError
        Naming the wheel.
    """
    if not spec.environment.wheels:
        return
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    for name in spec.environment.wheels:
        try:
            tags = parse_wheel_filename(name)[3]
        except InvalidWheelFilename as error:
            raise LockError(f"environment.wheels: {name!r}: {error}") from None
        if not any(_runs_on(tag, platform) for tag in tags):
            raise LockError(
                f"the wheel {name} travels with {spec.name}, but is not for {platform}",
                hint=f"bind the function on {platform}, or build for {spec.environment.platform}",
            )


def _runs_on(tag: Tag, platform: str) -> bool:
    of_linux = tag.platform.startswith(("linux_", "manylinux"))
    return tag.platform == "any" or (of_linux and tag.platform.endswith(_MACHINES[platform]))


def locked_version(lock: bytes, name: str) -> str | None:
    """Return the version of a distribution in a lock, if it is there."""
    packages = tomllib.loads(lock.decode()).get("packages", [])
    return next((each.get("version") for each in packages if each["name"] == name), None)


def check_lock(lock: bytes) -> None:
    """Refuse a lock that would carry a password into the build.

    Raises
    ------
    LockError
        If it does, or is no text.
    """
    try:
        refuse_credentials("the lock", lock.decode())
    except UnicodeDecodeError:
        raise LockError("the lock is no UTF-8 text") from None
    except OptionError as error:
        raise LockError(error.message, hint="lock with an index URL that has no password") from None
