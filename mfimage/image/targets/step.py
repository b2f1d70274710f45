"""Images that Metaflow runs a step in: a Python with the step's environment, and no program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mfimage.image.targets.target import Target
from mfimage.runtime.layout import RUNTIME_FILES, TARGET_VARIABLE

# Where Metaflow's commands for Kubernetes and AWS Batch unpack the flow's code.
WORKDIR = "/metaflow"


@dataclass(frozen=True, kw_only=True)
class StepTarget(Target):
    """A place to run Metaflow's own ``step`` command."""

    name = "step"
    template = "step.Dockerfile.j2"
    check = "mfimage.image.checks.step:check_step"
    env: ClassVar = {
        TARGET_VARIABLE: "step",
        # It would install what its datastore needs at each start; the environment has it.
        "METAFLOW_SKIP_INSTALL_DEPENDENCIES": "1",
        # A task on Kubernetes unpacks Metaflow with the code, and starts it several times.
        "PYTHONDONTWRITEBYTECODE": "",
    }
    # Whatever runs the step brings a command, such as `bash -c ...`.
    entrypoint = ()
    workdir = WORKDIR
    workdir_mode = 0o1777  # as /tmp: any user may run the step
    # With what registers our decorators, and what binds a function in a step.
    runtime = (
        *RUNTIME_FILES,
        "mfimage/bind.py",
        "mfimage/files.py",
        "mfimage/capture/**/*.py",
        "mfimage/package/**/*.py",
        "mfimage/steps/**/*.py",
        "metaflow_extensions/mfimage/config/*.py",
        "metaflow_extensions/mfimage/plugins/*.py",
    )

    @property
    def requirements(self) -> tuple[str, ...]:
        """See `Target`; the step's own environment has Metaflow."""
        return ()

    @property
    def cmd(self) -> tuple[str, ...]:
        """See `Target`."""
        return ("python",)
