"""Functions to bind to a run of IrisFlow."""

from metaflow import FunctionParameters, json_function


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Classify an iris.

    The input has a number for each feature name; the output has the class and its name.
    """
    features = [data[name] for name in params.feature_names]
    prediction = int(params.model.predict([features])[0])
    return {"prediction": prediction, "name": params.class_names[prediction]}


@json_function(batch=True)
def predict_many(records: list[dict], params: FunctionParameters) -> list[dict]:
    """Classify many irises with one call of the model."""
    rows = [[record[name] for name in params.feature_names] for record in records]
    return [
        {"prediction": int(label), "name": params.class_names[label]}
        for label in params.model.predict(rows)
    ]
