"""What most tests bind to: a scikit-learn model, and artifacts of a few odd kinds."""

import os

from metaflow import FlowSpec, Parameter, step


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    def scale(self, value):
        return value * self.factor


class Evil:
    """Leaves a mark wherever it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mknod, (self.mark,)


class IrisFlow(FlowSpec):
    threshold = Parameter("threshold", default=0.5)
    mark = Parameter("mark", default="mark")

    @step
    def start(self):
        self.next(self.train)

    @step
    def train(self):
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression

        data = load_iris()
        self.model = LogisticRegression(max_iter=200).fit(data.data, data.target)
        self.feature_names = list(data.feature_names)
        self.labels = [str(name) for name in data.target_names]
        self.scaler = Scaler(3)
        self.evil = Evil(self.mark)
        self.large = bytes(range(256)) * 4096
        self.next(self.end)

    @step
    def end(self):
        self.only_at_end = True


if __name__ == "__main__":
    IrisFlow()
