"""What distinguishes the images of one target from those of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mfimage.runtime.layout import CODE, FUNCTION, RUNTIME_FILES, VENV

# What mfimage's own files in an image import: the same in every target.
RUNTIME_REQUIREMENTS = ("orjson>=3.10", "pydantic>=2.10")


@dataclass(frozen=True, kw_only=True)
class Target:
    """An interface that an image can have; fields are build options that only its images take."""

    name: ClassVar[str]
    template: ClassVar[str]  # the Dockerfile's, in ``mfimage.templates``
    check: ClassVar[str]  # function that `mfimage test` runs on such an image, as ``module:name``
    env: ClassVar[Mapping[str, str]] = {}
    ports: ClassVar[tuple[int, ...]] = ()
    entrypoint: ClassVar[tuple[str, ...]] = (f"{VENV}/bin/python", "-m", "mfimage.runtime")
    workdir: ClassVar[str] = f"{FUNCTION}/{CODE}"
    workdir_mode: ClassVar[int] = 0o755
    runtime: ClassVar[tuple[str, ...]] = RUNTIME_FILES  # patterns of mfimage's own files
    # Commands that mfimage adds at the end of ``PATH``: name to module with a ``main``.
    programs: ClassVar[Mapping[str, str]] = {}
    label_names: ClassVar[tuple[str, ...]] = ()  # names of what `labels` returns

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is locked together with the function's own environment."""
        return RUNTIME_REQUIREMENTS

    @property
    def cmd(self) -> tuple[str, ...]:
        """Arguments of the entrypoint when ``docker run`` gives none."""
        return ("serve",)

    def labels(self, *, lock: bytes, python: str) -> dict[str, str]:
        """Return labels that only images of this target have."""
        return {}

    @classmethod
    def options_from(cls, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return those of this target's build options that an image's labels record."""
        return {}
