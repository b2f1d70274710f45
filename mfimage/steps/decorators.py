"""``@docker``: thin step decorators that write down where a step runs.

Metaflow imports this module with ``import metaflow``: only the standard library and Metaflow stand
at its top.
"""

from __future__ import annotations

from typing import Any, ClassVar

from metaflow.decorators import StepDecorator

from mfimage.steps.command import Launch, prefix

# Where these decorate the same step, the step runs there.
ELSEWHERE = ("kubernetes", "batch")


class DockerDecorator(StepDecorator):
    """Runs a step in a container on this machine."""

    name = "docker"
    defaults: ClassVar[dict[str, Any]] = {
        "image": None,
    }

    def step_init(
        self,
        flow: Any,
        graph: Any,
        step_name: str,
        decorators: list[StepDecorator],
        environment: Any,
        flow_datastore: Any,
        logger: Any,
    ) -> None:
        """Note what surrounds the step."""
        self.flow_name, self.step_name = flow.name, step_name
        self.elsewhere = any(each.name in ELSEWHERE for each in decorators)

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: str) -> None:
        """Write the step's options down."""
        self.options = Launch(
            executor="fake", flow=self.flow_name, step=self.step_name, options={}
        ).write()

    def runtime_step_cli(
        self, cli_args: Any, retry_count: int, max_user_code_retries: int, ubf_context: Any
    ) -> None:
        """Put the launcher before the command line of an attempt."""
        if retry_count <= max_user_code_retries and not self.elsewhere:
            cli_args.entrypoint = [*prefix(self.options), *cli_args.entrypoint]
