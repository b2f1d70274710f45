"""Binds functions in its steps, to tasks that run and to tasks that have finished."""

from metaflow import (
    FlowSpec,
    FunctionParameters,
    JsonFunction,
    Parameter,
    current,
    json_function,
    step,
)


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    return {"y": params.model["weight"] * data["x"] + params.bias, "label": params.labels[0]}


class BindingFlow(FlowSpec):
    bias = Parameter("bias", default=1)
    labels = ["low", "high"]  # noqa: RUF012  (Metaflow makes an artifact of it, too)

    @step
    def start(self):
        self.weights = [3, 5]
        self.next(self.train, foreach="weights")

    @step
    def train(self):
        self.model = {"weight": self.input}
        self.fn = JsonFunction(predict, task=current)
        self.answer = self.fn({"x": 2})
        self.where = current.pathspec
        self.next(self.join)

    @step
    def join(self, inputs):
        best = max(inputs, key=lambda each: each.model["weight"])
        self.model = {"weight": 2 * best.model["weight"]}
        self.best = JsonFunction(predict, task=best.where)
        self.fn = JsonFunction(predict, task=current.task)
        self.next(self.end)

    @step
    def end(self):
        self.answers = [self.best({"x": 2}), self.fn({"x": 2})]
        self.fn = JsonFunction(predict, task=current.pathspec)  # of what earlier steps set


if __name__ == "__main__":
    BindingFlow()
