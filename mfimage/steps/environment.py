"""``--environment=fast-bakery``: images instead of environments that each task makes anew.

Metaflow imports this module with ``import metaflow``: only the standard library and Metaflow stand
at its top. The TYPE is the one beside conda that ``@pypi`` and ``@conda`` work with.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from metaflow.decorators import StepDecorator
from metaflow.metaflow_environment import MetaflowEnvironment

from mfimage.steps.decorators import FIELDS, explained, register_place, set_images

_IMAGE = FIELDS["step.image"]
_RECORD = "step_image_internal"


class FastBakeryEnvironment(MetaflowEnvironment):
    """Builds the images of a flow's steps, and sets them on what executes the steps."""

    TYPE = "fast-bakery"
    _force_rebuild = False

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.images: dict[str, str] = {}

    def set_local_root(self, local_root: str) -> None:
        """Nothing is kept beside the local datastore."""

    def validate_environment(self, logger: Any, datastore_type: str) -> None:
        """Note what the images must reach."""
        self.logger, self.datastore_type = logger, datastore_type

    def decospecs(self) -> Sequence[str]:
        """Let each task record its image."""
        return (_RECORD,)

    def init_environment(self, echo: Any, only_steps: Any = None) -> None:
        """Build the images; a step with @pypi or @conda that nothing executes runs in @docker."""
        with explained():
            self._run_declared_in_docker()
        self.images = set_images(
            self.flow, environment=self.TYPE, datastore=self.datastore_type,
            fresh=self._force_rebuild,
        )  # fmt: skip

    def _run_declared_in_docker(self) -> None:
        from metaflow.decorators import _attach_decorators_to_step

        from mfimage.steps.declared import declares

        for step in self.flow:
            if any({"image", "config"} & each.attributes.keys() for each in step.decorators):
                continue
            if declares(self.flow, step):
                _attach_decorators_to_step(step, ["docker"])
                added = step.decorators[-1]
                added.external_init()
                added.step_init(
                    self.flow, self.flow._graph, step.name, step.decorators, self, None, self.logger
                )

    def is_disabled(self, step: Any) -> bool:
        """Let @conda do nothing of its own."""
        return True

    def bootstrap_commands(self, step_name: str, datastore_type: str) -> list[str]:
        """Tell the task which image it runs in."""
        image = self.images.get(step_name)
        return [f"export {_IMAGE}={shlex.quote(image)}"] if image else []


class StepImageDecorator(StepDecorator):
    """Records the image of a task that runs on a cluster; the environment adds it."""

    name = _RECORD
    defaults: dict[str, Any] = {}  # noqa: RUF012 - as Metaflow declares it

    def step_init(  # noqa: PLR0917 - Metaflow's signature
        self, flow: Any, graph: Any, step_name: str, decorators: Any, environment: Any,
        flow_datastore: Any, logger: Any,
    ) -> None:  # fmt: skip
        """Leave the record to @docker where it runs the step."""
        self.recorded = any(each.name == "docker" for each in decorators)

    def task_pre_step(  # noqa: PLR0917 - Metaflow's signature
        self, step_name: str, task_datastore: Any, metadata: Any, run_id: str, task_id: str,
        flow: Any, graph: Any, retry_count: int, max_user_code_retries: int, ubf_context: Any,
        inputs: Any,
    ) -> None:  # fmt: skip
        """Register the image."""
        if not self.recorded:
            register_place(metadata, run_id, step_name, task_id, retry_count)
