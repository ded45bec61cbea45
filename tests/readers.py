"""Work of spawned processes, which import the module that it is in: this one imports next to nothing."""


def sums(store, places, answers):
    """Of the samples at each place."""
    answers.put([float(store.read(place).sum()) for place in places])


def levels(store, numbers, answers):
    """The grey level of each crop."""
    answers.put([round(float(store.read(number).mean())) for number in numbers])
