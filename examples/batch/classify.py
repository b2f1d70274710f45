"""A batch function, to bind to a run of WineFlow."""

from typing import TypedDict

from metaflow import FunctionParameters, json_function


class Wine(TypedDict):
    alcohol: float
    color_intensity: float
    proline: float


class Prediction(TypedDict):
    cultivar: int


@json_function(batch=True)
def classify(wines: list[Wine], params: FunctionParameters) -> list[Prediction]:
    """Predict the cultivars of wines."""
    rows = [[wine[name] for name in params.features] for wine in wines]
    return [{"cultivar": cultivar} for cultivar in params.model.predict(rows).tolist()]
