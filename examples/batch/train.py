"""Train a classifier for wines: python train.py run."""

from metaflow import FlowSpec, step


class WineFlow(FlowSpec):
    """Train a scikit-learn model on three features of wines."""

    @step
    def start(self):
        from sklearn.datasets import load_wine
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        wine = load_wine()
        self.features = ["alcohol", "color_intensity", "proline"]
        columns = [wine.feature_names.index(name) for name in self.features]
        model = make_pipeline(StandardScaler(), LogisticRegression())
        self.model = model.fit(wine.data[:, columns], wine.target)
        self.next(self.end)

    @step
    def end(self):
        print(f"trained on {self.features}")


if __name__ == "__main__":
    WineFlow()
