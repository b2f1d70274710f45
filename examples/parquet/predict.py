"""A batch function on tables, to bind to a run of IrisFlow in ../iris."""

from typing import TypedDict

from metaflow import FunctionParameters, json_function, register_serializer
from parquet import Parquet

register_serializer(Parquet)


class Iris(TypedDict):
    prediction: int
    name: str


@json_function(batch=True)
def predict(records: list[dict], params: FunctionParameters) -> list[Iris]:
    """Predict the species of irises."""
    rows = [[record[name] for name in params.feature_names] for record in records]
    labels = params.model.predict(rows).tolist()
    return [{"prediction": label, "name": params.class_names[label]} for label in labels]
