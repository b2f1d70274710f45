"""A function with types, to bind to a run of IrisFlow: each field of a record is validated."""

from typing import Annotated, TypedDict

from metaflow import FunctionParameters, json_function
from pydantic import Field

Centimeters = Annotated[float, Field(gt=0, lt=20)]


class Flower(TypedDict):
    sepal_length: Centimeters
    sepal_width: Centimeters
    petal_length: Centimeters
    petal_width: Centimeters


class Species(TypedDict):
    name: str
    probability: float


@json_function
def classify(data: Flower, params: FunctionParameters) -> Species:
    """Name the species of an iris, from its measures in cm."""
    sizes = [data[f"{part}_{size}"] for part in ("sepal", "petal") for size in ("length", "width")]
    chances = params.model.predict_proba([sizes])[0]
    best = int(chances.argmax())
    return {"name": params.class_names[best], "probability": round(float(chances[best]), 3)}
