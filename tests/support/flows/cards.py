"""Binds functions in a step that has cards, beside an artifact that must not be unpickled."""

from metaflow import FlowSpec, FunctionParameters, JsonFunction, card, current, json_function, step


class Bomb:
    """Goes off in whoever unpickles it."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@json_function
def predict(data: dict, params: FunctionParameters) -> dict:
    """Add. <script>alert(1)</script>"""
    return {"y": data["x"] + params.bias}


class CardsFlow(FlowSpec):
    @card(type="mfimage")
    @card(type="mfimage", id="one", options={"artifact": "other"})
    @card(type="mfimage", id="wrong", options={"artifact": "bias"})
    @card(type="blank", id="own")
    @step
    def start(self):
        self.bias = 2
        self.fn = JsonFunction(predict, current, examples=[{"x": 1}])
        self.other = JsonFunction(predict, current, name="other")
        current.card["own"].append(self.fn.card())
        self.bomb = Bomb()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CardsFlow()
