"""A log of gradient norms, step by step, of any torch optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from untuned.memory.buckets import device_of, domain, local, number_from
from untuned.run.reduce import over_groups, over_shards
from untuned.schedules import tables

COLUMNS = ("step", "l1", "l2", "lr")


def global_norms(optimizer: torch.optim.Optimizer, shard_group: Any = None) -> torch.Tensor:
    """Of all gradients as one vector, L1 and L2 norm: float64 (2,) on the device of the first parameter.

    Sharded tensors are summed over the ranks that hold their shards; `shard_group`: ranks that hold different tensors.
    """
    here: dict[Any, list[torch.Tensor]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                g = local(p.grad).detach()
                g = g.coalesce().values() if g.layout == torch.sparse_coo else g
                g = g.abs() if g.is_complex() else g
                here.setdefault((g.device, domain(p)), []).append(g)
    total = number_from(0.0, device_of(optimizer.param_groups)).new_zeros(2)
    for (device, groups), grads in here.items():
        total += over_groups(_sums(grads, device.type), groups).to(total)
    total = over_shards(total, shard_group)
    scale = getattr(optimizer, "grad_scale", None)  # of a gradient scaler whose scale the optimizer takes out itself
    total = total if scale is None else total / torch.stack([s := scale.to(total), s * s])
    return torch.stack([total[0], total[1].sqrt()])


def _sums(grads: list[torch.Tensor], device: str) -> torch.Tensor:
    """Sums of |g| and of g^2, added up in float64: in float32 an L1 norm of 1e8 numbers on a CPU is wrong by half."""
    wide = torch.float32 if device == "mps" else torch.float64  # which has no float64
    if device == "cuda":
        l1, l2 = (
            torch._foreach_norm(grads, order, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
            for order in (1, 2)
        )
    else:  # where these are several times as fast
        l1 = [g.abs().sum(dtype=wide) for g in grads]
        l2 = [torch.linalg.vector_norm(g, 2, dtype=wide) for g in grads]
    return torch.stack([torch.stack([*l1]).sum(), torch.stack([*l2]).square().sum()])


class NormRecorder:
    """Records L1 and L2 norm of the whole raw gradient, and lr of group 0, in every step of a torch optimizer.

    The gradients are those that `step()` finds: all-reduced, without the scale of a gradient scaler, and not clipped if
    the optimizer does that itself (`clip_grad_norm=`). Where it keeps the numbers `grad_l1` and `grad_l2` of all its
    groups, these are taken as they are: without groups at lr 0, and after a step that it skipped those of the step
    before; else they are one more pass over the gradients. Nothing waits for the device: numbers stay there, and are
    copied every `every` steps. A `step(closure)` is recorded after it, with the gradients of its last call.

    `path` is a folder. It gets a Parquet file (step, l1, l2, lr) for every so many steps, written in one piece, by the
    first rank; a process that dies loses the steps since. `state_dict()` first writes what there is, and
    `load_state_dict()` takes back what was recorded after it, so that a resumed run has every step once. A folder with
    another run's steps is refused in the first step, and steps that another recorder writes meanwhile are not
    written over.

        recorder = NormRecorder(optimizer, "norms")
        ...                                                         # train
        recorder.close()                                            # then: untuned schedule refine norms
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, path: Path | str, every: int = 1000, shard_group: Any = None
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"NormRecorder: every must be a whole number of at least 1, not {every!r}.")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"NormRecorder needs a torch.optim.Optimizer, not an object of type {type(optimizer).__name__}."
            )
        if not isinstance(path, (str, Path)):
            raise TypeError(f"NormRecorder: path must name a folder, not {path!r}.")
        tables.arrow()
        self.optimizer, self.path, self.every = optimizer, Path(path), every
        self.steps = 0
        self._shard_group = getattr(optimizer, "shard_group", None) if shard_group is None else shard_group
        self._rows: list[torch.Tensor] = []  # of steps that are on the device only
        self._runs = False  # a step; one that calls that of its class is hooked twice, and recorded once
        self._norms: torch.Tensor | None = None  # of the step that runs
        self._sent: tuple[torch.Tensor, int, Any] | None = None  # rows on their way to the host, the last step, event
        self._ours = False  # whether what the folder holds belongs to this run
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    # ------------------------------------------------------------------ in a step

    @torch.no_grad()
    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._ours and self._writes:
            self._make_folder()
            if held := self._last():
                raise FileExistsError(
                    f"{self.path} holds the norms of {held} steps: load the recorder's state_dict() to go on, or "
                    "choose another path."
                )
        self._ours = self._runs = True
        closure = any(map(callable, args)) or kwargs.get("closure") is not None
        self._norms = None if closure or self._given() is not None else global_norms(optimizer, self._shard_group)

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._runs:
            return
        norms = self._given() if self._norms is None else self._norms
        norms = global_norms(optimizer, self._shard_group) if norms is None else norms
        lr = optimizer.param_groups[0]["lr"]
        lr = lr.detach() if isinstance(lr, torch.Tensor) else float(lr)
        self._rows.append(torch.cat([norms, number_from(lr, norms.device).reshape(1)]))
        self.steps, self._norms, self._runs = self.steps + 1, None, False
        if len(self._rows) >= self.every:
            self._send()

    def _given(self) -> torch.Tensor | None:
        """The norms that the optimizer has computed."""
        first, *others = self.optimizer.param_groups
        keys = "grad_l1", "grad_l2"
        if not all(key in first and all(group.get(key) is first[key] for group in others) for key in keys):
            return None  # or those of some labels only
        return torch.stack([torch.as_tensor(first[key]).double() for key in keys])

    # ------------------------------------------------------------------ to the disk

    def _send(self) -> None:
        """Write what was sent before, which has arrived long since, and send what came after; a CPU's at once."""
        self._write()
        if self._rows:
            rows = torch.stack(self._rows)
            event = torch.cuda.Event() if rows.is_cuda else None
            self._sent = rows.to("cpu", non_blocking=rows.is_cuda), self.steps, event
            self._rows = []
            if event is None:
                self._write()
            else:
                event.record(torch.cuda.current_stream(rows.device))

    def _write(self) -> None:
        if self._sent is None:
            return
        rows, last, event = self._sent
        if event is not None:
            event.synchronize()
        if self._writes:
            self._make_folder()
            first = last - len(rows) + 1
            if any(int(file.stem) >= first for file in self._files()[-1:]):
                self._sent = None
                raise FileExistsError(
                    f"{self.path} holds step {first} of another recorder: give each recorder a path of its own."
                )
            columns = zip(COLUMNS[1:], rows.double().numpy().T, strict=True)
            tables.write(self._file(first), {"step": torch.arange(first, last + 1).numpy(), **dict(columns)})
        self._sent = None

    def flush(self) -> None:
        """Write all steps so far; waits for the device."""
        self._send()
        self._write()

    def close(self) -> None:
        """Write all steps so far and record no more."""
        self.flush()
        for hook in self._hooks:
            hook.remove()

    def _make_folder(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{self.path} cannot be a folder ({error.strerror}): choose another path."
            raise type(error)(f"NormRecorder: {why}") from None

    @property
    def _writes(self) -> bool:
        return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

    def _file(self, first: int) -> Path:
        return self.path / f"{first:012d}.parquet"

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("[0-9]*.parquet"))

    def _last(self) -> int:
        """The last step in the folder, 0 if there is none."""
        files = self._files()
        return int(tables.column(files[-1], tables.of_parquet(files[-1], files[-1:]), "step")[-1]) if files else 0

    # ------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, int]:
        """How many steps are recorded; all of them are in the folder then."""
        self.flush()
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after so many steps; those that the folder has beyond them are removed.

        Raises ValueError, with nothing changed, if the folder has fewer.
        """
        steps = state_dict.get("steps") if isinstance(state_dict, dict) else None  # pyright: ignore
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError("NormRecorder cannot load this: it is no state_dict() of a NormRecorder.")
        if self._writes:
            if (held := self._last()) < steps:
                raise ValueError(f"{self.path} holds the norms of {held} steps, the recorder had written {steps}.")
            self._cut(steps)
        self.steps, self._rows, self._sent, self._ours = steps, [], None, True

    def _cut(self, steps: int) -> None:
        files = self._files()
        while files and int(files[-1].stem) > steps:  # the last first: what is left is always a log without a gap
            files.pop().unlink()
        if files:
            last, kept = files[-1], steps - int(files[-1].stem) + 1
            table = tables.arrow()[1].read_table(last)
            if len(table) > kept:
                tables.replace(last, lambda to: tables.arrow()[1].write_table(table.slice(0, kept), to))
