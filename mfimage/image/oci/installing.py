"""uv on this machine, with the build's credentials and for the image's platform."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from configparser import Error as ConfigError
from configparser import RawConfigParser
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mfimage.capture.target import Target
from mfimage.capture.uv import run_uv
from mfimage.capture.uv_errors import UvFailure
from mfimage.errors import BuildError, LockError
from mfimage.image.build_secrets import CA, NETRC, PIP_CONF
from mfimage.image.plan import ImagePlan
from mfimage.image.redaction import Redactor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Settings of the user's that would give other files, or none.
_IGNORED = (
    "UV_COMPILE_BYTECODE",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_NO_VERIFY_HASHES",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
)


def install(
    plan: ImagePlan,
    wheels: Mapping[str, Path],
    tree: Path,
    work: Path,
    *,
    secrets: Mapping[str, bytes],
) -> None:
    """Install a plan's lock below ``tree``, as below an environment's folder.

    Parameters
    ----------
    plan : ImagePlan
        What to install, for which platform and Python.
    wheels : mapping of str to Path
        By path in the lock: wheels that travel with the function.
    tree : Path
        Where to; empty.
    work : Path
        A private folder.
    secrets : mapping of str to bytes
        Credentials, which go to uv alone.

    Raises
    ------
    LockError
        When a distribution has no wheel.
    BuildError
        When uv fails; its message without credentials.
    """
    _refuse_sources(plan)
    lock = work / "lock"
    for name, path in {"pylock.toml": None, **wheels}.items():
        target = lock / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path is None:
            target.write_bytes(plan.dependencies.lock)
        else:
            target.symlink_to(path)
    platform = Target(python=plan.python, platform=plan.platform)
    arguments = [
        *("pip", "install", "--quiet", "--prefix", str(tree), "--python", sys.executable),
        *("--python-version", plan.python, "--python-platform", platform.uv_platform),
        *("--require-hashes", "--no-build", "--no-deps", "--no-compile-bytecode"),
        *("--requirement", str(lock / "pylock.toml")),
    ]
    try:
        with _handed_over(secrets) as (variables, descriptors):
            environment = {**_environment(plan), **variables}
            run_uv(arguments, lock, environment, pass_fds=descriptors)
    except UvFailure as failure:
        reason = Redactor(secrets.values())(" ".join(str(failure).split()))
        raise BuildError(
            f"the dependencies cannot be installed: {reason}",
            hint="what wants a password gets it by --secret; a proxy's certificate by "
            "--secret id=ca,src=FILE",
        ) from None


def _refuse_sources(plan: ImagePlan) -> None:
    for package in tomllib.loads(plan.dependencies.lock.decode()).get("packages", ()):
        if not package.get("wheels"):
            raise LockError(
                f"{package['name']} {package.get('version', '')} has no wheel in the lock, and "
                "nothing is built from source",
                hint="bind the function again: then its wheel is built once, and travels with it; "
                "or add what builds it in a base image, and use --builder docker",
            )


def _environment(plan: ImagePlan) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _IGNORED}
    environment |= {
        "UV_NO_INSTALLER_METADATA": "1",
        "UV_PREVIEW_FEATURES": "pylock",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": environment.get("UV_LINK_MODE", "hardlink"),
    }
    if plan.index_url:
        environment["UV_DEFAULT_INDEX"] = plan.index_url
        environment.pop("UV_INDEX_URL", None)
    if plan.extra_index_urls:
        environment["UV_INDEX"] = " ".join(plan.extra_index_urls)
    return environment


@contextmanager
def _handed_over(secrets: Mapping[str, bytes]) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield the variables by which uv gets secrets, and open files that it needs for that.

    The files have no name: nobody else can open them, and a kill leaves none behind.
    """
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        descriptors = []
        for name, value in secrets.items():
            if name in (CA, NETRC):
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(value)
                file.seek(0)
                descriptors.append(file.fileno())
                variable = "SSL_CERT_FILE" if name == CA else "NETRC"
                variables[variable] = f"/dev/fd/{file.fileno()}"
            elif name == PIP_CONF:
                variables.update(_pip_indexes(value))
            else:
                variables[name] = value.decode().strip("\n")
        yield variables, descriptors


def _pip_indexes(value: bytes) -> Iterator[tuple[str, str]]:
    parser = RawConfigParser()
    try:
        parser.read_string(value.decode())
    except (ConfigError, UnicodeDecodeError):
        raise BuildError(
            "secret pip.conf: it cannot be read", hint="as pip: [global], then index-url = ..."
        ) from None
    found: Any = parser["global"] if parser.has_section("global") else {}
    for key, variable in (("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX")):
        if urls := found.get(key, found.get(key.replace("-", "_"))):
            yield variable, " ".join(urls.split())
