"""What is handed to a step: the loss, the samples and declared signals, on this rank and over all."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from untuned.memory.buckets import number_from
from untuned.memory.now import Now
from untuned.memory.slots import numbers_of_model
from untuned.parts.declare import inside, is_real
from untuned.recipe.recipe import Recipe
from untuned.run import reduce


class Inputs:
    """Reads what the caller gives as the parts declare it, and makes one of what the ranks have."""

    def __init__(self, recipe: Recipe, loss_group: Any, shard_group: Any) -> None:
        self.recipe, self.title, self.loss_group, self.shard_group = recipe, recipe.title, loss_group, shard_group
        self.recorded: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.drifted: Any = False  # whether numbers of the model were seen to differ between ranks

    @property
    def meets(self) -> bool:
        """Whether ranks add something up, so that all of them have to, whatever each holds."""
        return max(reduce.size(self.shard_group), reduce.size(self.loss_group) if self.recipe.driven else 1) > 1

    def record(self, loss: Any, sample_ids: Any, device: torch.device) -> None:
        ids = self._ids(sample_ids, device)
        self.recorded.append((self._scalar(loss, ids, device), ids))

    def _scalar(self, loss: Any, ids: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        sizes = (1,) if ids is None else (1, ids.numel())
        if isinstance(loss, torch.Tensor) and loss.numel() in sizes and not loss.is_complex():
            return loss.detach().to(device, torch.float64).mean()
        if is_real(loss):
            return number_from(float(loss), device)
        shown = f"a tensor of shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise TypeError(f"{self.title}: the loss must be a number or a one-element tensor, not {shown}.")

    def _ids(self, sample_ids: Any, device: torch.device) -> torch.Tensor | None:
        """The ids on the optimizer's device if the method reads them; their range is checked where that is free."""
        samples = self.recipe.samples
        if samples is None:
            return None
        if sample_ids is None:
            raise ValueError(
                f"{self.title}.step() needs to know the samples: call step(loss=loss, sample_ids=ids) with their "
                f"numbers in the data set, 0 to {samples - 1}."
            )
        ids = torch.as_tensor(sample_ids)
        if ids.dim() != 1 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"{self.title}: sample_ids must be a vector of whole numbers, not {sample_ids!r}.")
        if ids.device.type == "cpu" and not 0 <= ids.numpy().min() <= ids.numpy().max() < samples:
            raise ValueError(
                f"{self.title}: sample_ids must lie between 0 and {samples - 1} (samples={samples}), not between "
                f"{ids.numpy().min()} and {ids.numpy().max()}."
            )
        return ids.to(device, torch.int64)

    def signals(self, given: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        """The signals of a step, of which none may be missing, foreign or outside its interval."""
        declared = list(dict.fromkeys(key for key, _ in self.recipe.signals))
        if unknown := sorted(given.keys() - {*declared}):
            names = ", ".join(["loss", "sample_ids", *declared])
            raise TypeError(f"{self.title}.step() takes no {unknown[0]!r}; it takes {names}.")
        if missing := [key for key in declared if key not in given]:
            raise ValueError(f"{self.title}.step() needs {missing[0]}: call step({missing[0]}=...) with a number.")
        given = {key: value.detach() if torch.is_tensor(value) else value for key, value in given.items()}
        for key, value in given.items():
            if not (value.numel() == 1 and not value.is_complex() if torch.is_tensor(value) else is_real(value)):
                raise TypeError(f"{self.title}: {key} must be a number or a one-element tensor, not {value!r}.")
        for key, within in self.recipe.signals:
            if (not torch.is_tensor(given[key]) or given[key].is_cpu) and not inside(float(given[key]), within):
                raise ValueError(f"{self.title}: {key} must be a number in {within}, not {given[key]!r}.")
        return {key: number_from(value, device).reshape(()) for key, value in given.items()}

    def of_rank(self, loss: Any, computed: Any, sample_ids: Any, device: torch.device) -> tuple[Any, Any]:
        """The loss of this rank, as a number, and its sample ids, if the method reads them."""
        if not self.recipe.driven:
            return None, None
        if loss is not None and self.recorded:
            raise ValueError(f"{self.title}.step() got loss= after record_loss(loss): give the loss one way only.")
        if self.recorded:
            values = torch.stack([value.to(device) for value, _ in self.recorded])
            recorded = [ids for _, ids in self.recorded if ids is not None]
            ids = torch.cat(recorded) if recorded else None
            sizes = [len(i) for i in recorded] or [1] * len(values)  # of the micro-batches, as far as they are known
            return (values * values.new_tensor(sizes)).sum() / sum(sizes), ids
        given = loss if loss is not None else computed
        if given is None:
            raise ValueError(
                f"{self.title}.step() needs the loss: call step(loss=loss), step(closure) or record_loss(loss) "
                f"before it."
            )
        ids = self._ids(sample_ids, device)
        return self._scalar(given, ids, device), ids

    def take(self, now: Now, value: Any, ids: Any) -> None:
        """What decisions read: the mean loss of the ranks, and the samples of all of them."""
        if value is not None:
            numbers = numbers_of_model(self.recipe, now.groups)
            value, drifted = reduce.mean_over_ranks(value, numbers, self.loss_group)
            self.drifted |= drifted
            now.loss = -value if self.recipe.maximize else value
        now.ids = None if ids is None else reduce.of_all_ranks(self.title, ids, self.loss_group)

    def call_roll(self, now: Now, ready: bool, live: Iterable[int] = ()) -> torch.Tensor | None:
        """Tell the other ranks whether this one is ready for the sums of the step, and hear whether all are.

        `live`: the numbers of the groups in which it has gradients. -> how many ranks have some in each group, if ranks
        hold different parameters; else None. A rank that has run out of batches in `DistributedDataParallel.join` adds
        up one float32, too, a zero. A GPU would have to be waited for: there nobody hears of a rank that failed, and
        the process group ends those who wait for it.
        """
        on_host, counts, missing = now.device.type == "cpu", None, 0
        loss_group = self.loss_group if self.recipe.driven and on_host else None
        by_group = [float(i in live) for i in range(len(now.groups))]
        for group, said in ((loss_group, [float(ready)]), (self.shard_group, [float(ready), *by_group])):
            if (size := reduce.size(group)) > 1:
                counts = torch.stack([number_from(value, now.device) for value in said]).float()
                counts = reduce.over_shards(counts, group)
                missing = max(missing, size - int(counts.numpy()[0])) if on_host else 0
        if ready and missing:  # known after both sums, in which a rank that failed takes part, too
            raise RuntimeError(
                f"{self.title}.step(): {missing} ranks take no part in it. One that failed says why itself; one that "
                f"ran out of batches in model.join() needs "
                f"Join([model, untuned.integrations.join.Joining(optimizer)]) in its place."
            )
        return counts[1:] if counts is not None and reduce.size(self.shard_group) > 1 else None
