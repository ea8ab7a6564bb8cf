"""How much memory a run takes: the optimizer's state, and the peak of the process where the system tells it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory that an optimizer holds beside parameters and gradients, each storage once."""
    own = {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}
    held = _tensors([*optimizer.state.values(), *optimizer.param_groups])
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in held) if s.data_ptr() not in own}
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Forget the peak so far, where the system can; else `resident_peak` is that since the process began."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            _RESET.write_text("5")


def resident_peak() -> int | None:
    """The largest resident memory of this process in bytes; None on systems that do not tell."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return 1024 * int(line.split()[1])
