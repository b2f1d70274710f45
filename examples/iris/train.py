"""Train a classifier of iris flowers: python train.py run."""

from metaflow import FlowSpec, step


class IrisFlow(FlowSpec):
    """Trains a model; keeps it and the names of its features and classes as artifacts."""

    @step
    def start(self):
        self.next(self.train)

    @step
    def train(self):
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression

        iris = load_iris()
        self.feature_names = list(iris.feature_names)
        self.class_names = [str(name) for name in iris.target_names]
        self.model = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
        self.next(self.end)

    @step
    def end(self):
        print(f"trained on {self.feature_names}")


if __name__ == "__main__":
    IrisFlow()
