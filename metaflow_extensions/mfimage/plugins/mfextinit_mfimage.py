"""Tells Metaflow which step decorators and environments there are."""

STEP_DECORATORS_DESC = [
    ("docker", "mfimage.steps.decorators.DockerDecorator"),
    ("devcontainer", "mfimage.steps.decorators.DevContainerDecorator"),
    ("worker_pool", "mfimage.steps.pool.decorator.WorkerPoolDecorator"),
]
