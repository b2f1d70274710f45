"""The checks of an image that a step runs in."""

from __future__ import annotations

from mfimage.image.checks.report import Failed, Recorder
from mfimage.image.checks.runner import ContainerOptions, ImageRunner, wait_for_end
from mfimage.image.checks.server import CheckOptions

# What Metaflow's commands for Kubernetes, Argo and AWS Batch begin with, by a user of their own.
_COMMAND = (
    "bash", "-c",
    "mkdir metaflow && cd metaflow && touch job.tar && command -v tar && "
    "python -c 'import metaflow; from metaflow import docker; print(metaflow.__version__)'",
)  # fmt: skip


def check_step(runner: ImageRunner, recorder: Recorder, options: CheckOptions) -> None:
    """Check that Metaflow's commands run, also as a user that the image does not know."""

    def runs(user: str | None) -> str:
        launch = ContainerOptions(entrypoint=_COMMAND, user=user, no_capabilities=True)
        with runner.start(launch) as container:
            code = wait_for_end(container, options.timeout)
            log = container.log(None).strip()
        if code:
            raise Failed(f"it ended with exit code {code}: {log}")
        return f"Metaflow {log.rpartition(chr(10))[2]}"

    recorder.run("metaflow", lambda: runs(None))
    recorder.run("arbitrary-uid", lambda: runs("4321:4321"))
