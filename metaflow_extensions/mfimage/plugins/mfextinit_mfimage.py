"""Tells Metaflow which step decorators and environments there are."""

STEP_DECORATORS_DESC = [
    ("docker", "mfimage.steps.decorators.DockerDecorator"),
    ("devcontainer", "mfimage.steps.decorators.DevContainerDecorator"),
    ("step_image_internal", "mfimage.steps.environment.StepImageDecorator"),
    ("worker_pool", "mfimage.steps.pool.decorator.WorkerPoolDecorator"),
]
ENVIRONMENTS_DESC = [
    ("fast-bakery", "mfimage.steps.environment.FastBakeryEnvironment"),
]
