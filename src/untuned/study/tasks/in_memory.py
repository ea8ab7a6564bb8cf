"""Tasks whose training data are a few tensors, one row a sample."""

from collections.abc import Iterator

from torch import Tensor

from .task import Task, shuffled


class InMemory(Task):
    """A constructor sets `train`: tensors of equally many rows; a batch is a tuple of the chosen rows of each."""

    train: tuple[Tensor, ...]

    @property
    def samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.train[0])

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        for index in self.ids(seed, epoch):
            yield tuple(tensor.index_select(0, index) for tensor in self.train)

    def ids(self, seed: int, epoch: int) -> Iterator[Tensor]:
        return shuffled(self.samples, self.batch_size, seed, epoch)
