"""A run that fails, after a task that was caught and beside one that went well."""

from metaflow import FlowSpec, catch, step


class OddFlow(FlowSpec):
    @step
    def start(self):
        self.items = [1, 0]
        self.next(self.each, foreach="items")

    @catch(var="caught")
    @step
    def each(self):
        self.inverse = 1 // self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.kept = 1
        self.never = 1 // 0
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OddFlow()
