"""What a step declares: its environment, from the first of @pypi, @conda, uv.lock and imports."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mfimage.capture.code.imports import Code, search_imports
from mfimage.capture.environment.sources import Request, conda, project
from mfimage.capture.lock.indexes import OWN_CONFIGURATION, IndexOptions
from mfimage.capture.lock.platform import Platform
from mfimage.capture.lock.pylock import read_lock
from mfimage.capture.lock.settle import Lock
from mfimage.capture.lock.solve import extend_lock, lock_requirements
from mfimage.capture.lock.uv import NEVER_LOCKED
from mfimage.errors import LockError, OptionError
from mfimage.package.spec import sha256_of

PYPI, CONDA, UV, IMPORTS = "pypi", "conda", "uv.lock", "imports"
UV_TYPE = "uv"  # of Metaflow's environment
# What Metaflow needs to reach its datastore, by the datastore's type.
DATASTORES: Mapping[str, tuple[str, ...]] = {
    "local": (),
    "s3": ("boto3",),
    "gs": (
        *("google-cloud-storage", "google-auth", "simple-gcp-object-downloader"),
        *("google-cloud-secret-manager", "packaging"),
    ),
    "azure": (
        *("azure-identity", "azure-storage-blob", "azure-keyvault-secrets"),
        "simple-azure-blob-downloader",
    ),
}
# Conda packages that no wheel stands for, and what has their content.
_CUDA = "the wheels of PyTorch, TensorFlow and JAX contain CUDA: leave it out"
_CONDA_ONLY = dict.fromkeys(("cudatoolkit", "cuda-toolkit", "cudnn", "pytorch-cuda"), _CUDA)
_PYTHON = re.compile(r"3\.\d+(\.\d+)?")
_SPECIFIED = ("<", ">", "!", "~", "=")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The environment that a step declares, before anything is solved."""

    source: str  # ``pypi``, ``conda``, ``uv.lock`` or ``imports``
    python: str  # minor version
    platform: str
    # Lines of a requirements file: what the step names, or what its file imports.
    requirements: tuple[str, ...] = ()
    # What Metaflow itself needs, besides.
    needed: tuple[str, ...] = ()
    # Of a ``uv.lock``: exported, before `needed` is added.
    exported: Lock | None = None
    project: Path = field(default_factory=Path.cwd)
    index: IndexOptions = OWN_CONFIGURATION

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of what is declared; equal environments have equal ones."""
        return sha256_of(
            {
                "source": self.source,
                "python": self.python,
                "platform": self.platform,
                "requirements": sorted(self.requirements),
                "needed": sorted(self.needed),
                "exported": self.exported.data.decode() if self.exported else "",
                "indexes": [self.index.index_url, *self.index.extra_index_urls],
            }
        )

    def lock(self) -> Lock:
        """Solve it."""
        platform = Platform(python=self.python, name=self.platform)
        if self.exported:
            names = {package.name for package in read_lock(self.exported.data)}
            missing = [each for each in self.needed if _name(each) not in names]
            data = extend_lock(
                self.exported.data, missing, platform, index=self.index,
                label="what Metaflow needs", directory=self.project,
            ) if missing else self.exported.data  # fmt: skip
            return Lock(data=data, wheels=self.exported.wheels)
        if self.source == CONDA:
            pins = [each for each in self.requirements if "==" in each]
            conda.refuse_lost(
                {pin: pin for pin in pins}, platform, index=self.index, directory=self.project,
                hint="use @pypi for the step, with what has its content",
            )  # fmt: skip
        named = {_name(each) for each in self.requirements}
        needed = [each for each in self.needed if _name(each) not in named]
        return lock_requirements(
            [*self.requirements, *needed],
            platform=platform, index=self.index, directory=self.project,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FlowFile:
    """Where a flow's code is, and what all of its steps share."""

    path: Path
    flow: str  # its class
    environment: str  # TYPE of Metaflow's environment
    datastore: str  # TYPE of Metaflow's datastore
    index: IndexOptions = OWN_CONFIGURATION

    @property
    def root(self) -> Path:
        """The folder that is on ``sys.path`` when the file is run."""
        return self.path.parent


def declares(flow: Any, step: Any) -> str | None:
    """Return the decorator that a step declares its environment with: ``pypi`` or ``conda``."""
    found = {name: merged(flow, step, name) for name in (PYPI, CONDA)}
    given = {name: each for name, each in found.items() if each is not None}
    if any(str(each["disabled"]).lower() == "true" for each in given.values()):
        return None
    if all(found[name] and found[name]["packages"] for name in found):  # type: ignore[index]
        raise OptionError(
            f"step {step.name}: it has packages of @pypi and of @conda",
            hint="use one of them: an image has one set of packages",
        )
    # @conda without packages only says which Python.
    order = sorted(given, key=lambda name: not given[name]["packages"])
    return order[0] if order else None


def merged(flow: Any, step: Any, name: str) -> dict[str, Any] | None:
    """Return the attributes of a step's @pypi or @conda, with those of the flow's ``_base``."""
    # As Metaflow's step_init does; done twice, it changes nothing.
    own = next((each.attributes for each in step.decorators if each.name == name), None)
    bases = flow._flow_decorators.get(f"{name}_base") or [None]
    base = getattr(bases[0], "attributes", None)
    if own is None and base is None:
        return None
    own, base = own or {}, base or {}

    def first(key: str) -> Any:
        found = (each[key] for each in (own, base) if each.get(key) not in (None, ""))
        return next(found, None)

    packages: dict[str, str] = {}
    for each in (base, own):
        packages |= {**(each.get("libraries") or {}), **(each.get("packages") or {})}
    return {"packages": packages, "python": first("python"), "disabled": first("disabled")}


def declare_steps(flow: Any, platforms: Mapping[str, str], file: FlowFile) -> dict[str, Declared]:
    """Return the environment of each step that ``platforms`` has the platform of."""
    # Steps that declare none share one: what any of them imports.
    shared: dict[str, Declared] = {}
    found = {}
    for step in flow:
        if (platform := platforms.get(step.name)) is None:
            continue
        if file.environment != UV_TYPE and (kind := declares(flow, step)):
            found[step.name] = _by_decorator(flow, step, kind, file, platform)
        else:
            if platform not in shared:
                shared[platform] = _by_project(flow, file, platform)
            found[step.name] = shared[platform]
    return found


def _needed(file: FlowFile) -> tuple[str, ...]:
    return (f"metaflow=={_metaflow()}", "requests", *DATASTORES.get(file.datastore, ()))


def _by_decorator(flow: Any, step: Any, kind: str, file: FlowFile, platform: str) -> Declared:
    attributes = merged(flow, step, kind) or {}
    lines = (_pypi_lines if kind == PYPI else _conda_lines)(attributes["packages"], step.name)
    return Declared(
        source=kind, python=_minor(attributes["python"], step.name), platform=platform,
        requirements=tuple(lines), needed=_needed(file), project=file.root, index=file.index,
    )  # fmt: skip


def _by_project(flow: Any, file: FlowFile, platform: str) -> Declared:
    request = Request(
        code=Code(
            root=file.root,
            files=[],
            module=file.path.stem,
            functions=[file.flow],
            artifacts={},
            steps=[step.name for step in flow if not declares(flow, step)],
        ),
        project=file.root,
        platform=platform,
        index=file.index,
    )
    shared = partial(
        Declared, platform=platform, needed=_needed(file), project=file.root, index=file.index
    )
    if found := project.find(request):
        locked = found()
        return shared(source=UV, python=_minor(locked.python, "start"), exported=locked.lock)
    if file.environment == UV_TYPE:
        raise LockError(
            f"--environment=uv: no uv.lock in {file.root} or above it", hint="run `uv lock`"
        )
    return shared(
        source=IMPORTS, python=_minor(None, "start"), requirements=tuple(_imported(request))
    )


def _imported(request: Request) -> list[str]:
    """Return what the flow's file imports, at the versions installed here."""
    with search_imports(request.code, run=False) as search:
        maker = request.maker(search.result())
    installed = maker.imports.installed
    names = installed.close(maker.imports.distributions(), maker.platform).keys()
    return [installed[name].requirement() for name in sorted(names - set(NEVER_LOCKED))]


def _pypi_lines(packages: Mapping[str, str], step: str) -> Iterator[str]:
    for name, version in sorted(packages.items()):
        text = str(version or "").strip()
        if text.startswith("@"):
            yield f"{name} {text}"
        else:
            separator = "" if not text or text.startswith(_SPECIFIED) else "=="
            yield _checked(f"{name}{separator}{text}", f"@pypi of step {step}")


def _conda_lines(packages: Mapping[str, str], step: str) -> Iterator[str]:
    where = f"@conda of step {step}"
    for name, version in sorted(packages.items()):
        text = str(version or "").strip()
        channel, _, bare = name.rpartition("::")
        if channel:
            raise LockError(
                f"{where}: {name} is from a channel of conda, and an image has wheels",
                hint=f"write {bare!r}, or use @pypi for the step",
            )
        if bare in _CONDA_ONLY:
            raise LockError(
                f"{where}: {name} {text} is a conda package without a wheel",
                hint=f"{_CONDA_ONLY[bare]}, or use --environment=conda",
            )
        if "=" in text.lstrip("<>!~="):
            raise LockError(
                f"{where}: {name}: {text!r} names a build of conda's", hint="leave the build out"
            )
        separator = "" if not text or text.startswith(_SPECIFIED) else "=="
        text = f"={text}" if re.match(r"=[^=]", text) else text
        yield _checked(f"{conda.wheel_name(bare)}{separator}{text}", where)


def _checked(line: str, where: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return str(Requirement(line))
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise LockError(
            f"{where}: {line!r} is not a requirement: {reason}", hint="such as 'pandas': '2.3.1'"
        ) from None


def _name(line: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0])


def _minor(python: str | None, step: str) -> str:
    """Return the minor version of Python; by default the one that runs the flow."""
    text = str(python or f"{sys.version_info.major}.{sys.version_info.minor}")
    if not _PYTHON.fullmatch(text):
        raise OptionError(
            f"step {step}: python={python!r} is not a version of Python", hint="such as 3.11"
        )
    return ".".join(text.split(".")[:2])


def _metaflow() -> str:
    """Return the version of Metaflow that runs here, as an index has it."""
    from importlib.metadata import version

    from packaging.version import Version

    return Version(version("metaflow")).public
