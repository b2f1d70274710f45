"""Trains in a container, and scores in a pool of warm workers there."""

from metaflow import FlowSpec, Parameter, docker, pypi, resources, retry, step, worker_pool

SKLEARN = {"scikit-learn": "1.7.2"}


class WineFlow(FlowSpec):
    shards = Parameter("shards", default=50, help="How many items to score")

    @step
    def start(self):
        self.next(self.train)

    @docker
    @resources(cpu=2, memory=2048)
    @pypi(python="3.11", packages=SKLEARN)
    @step
    def train(self):
        from sklearn.datasets import load_wine
        from sklearn.ensemble import RandomForestClassifier

        wines = load_wine()
        self.model = RandomForestClassifier(20, random_state=0).fit(wines.data, wines.target)
        self.parts = list(range(self.shards))
        self.next(self.score, foreach="parts")

    @docker
    # A loop: scikit-learn, which only the image has, is imported once a worker.
    @worker_pool(mode="loop", max_items_per_worker=1000)
    @retry(times=2)
    @pypi(python="3.11", packages=SKLEARN)
    @step
    def score(self):
        from sklearn.datasets import load_wine

        part = load_wine().data[self.input :: self.shards]
        self.classes = self.model.predict(part).tolist() if len(part) else []
        self.next(self.join)

    @step
    def join(self, items):
        classes = [each for item in items for each in item.classes]
        self.counts = {each: classes.count(each) for each in sorted(set(classes))}
        self.next(self.end)

    @step
    def end(self):
        print(self.counts)


if __name__ == "__main__":
    WineFlow()
