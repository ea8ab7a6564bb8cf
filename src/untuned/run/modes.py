"""Methods that hold different points in training and in evaluation."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from untuned.memory.buckets import Bucket, States
from untuned.memory.now import Now
from untuned.run.eager import ElementFrame


def switch(now: Now, states: States, training: bool) -> None:
    """Put the point to train from into the parameters, or the one to evaluate."""
    for group in now.groups:
        parts = now.recipe.of(group)
        for p in group["params"]:
            if held := states.get(p):  # before its first step a parameter is what it is
                frame = ElementFrame(now, Bucket(group, [p], [held], p.device, (), parts, on=held["step"] > 0), 0)
                (parts["iterate"].enter if training else parts["iterate"].leave)(frame.place("iterate"))
                frame.commit()
        group["training"] = training
