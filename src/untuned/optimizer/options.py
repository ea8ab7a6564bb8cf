"""The options that all optimizers take."""

from __future__ import annotations

from typing import Any, TypedDict

import torch


class EngineOptions(TypedDict, total=False):
    """Options every optimizer of the library takes, by keyword.

    gradient, around: lists of transforms of the gradient, before those of the method, and of the plain step, behind
    them: untuned.AdamW(params, gradient=[untuned.gradients.Norms()]). maximize: ascend instead of descend; a bound of
    the loss (lb, target) is then one of minus the loss. skip_nonfinite: leave everything as it was in a step where a
    gradient, its square, or the loss that the method reads is not finite, and count it in `metrics()["skipped"]`; costs
    one read of the gradients. slot_dtype: the dtype of slots (default: float32 for float16 and bfloat16 parameters,
    else the parameter's). loss_group: the process group over whose ranks the loss is averaged, "world" (default; with
    tensor parallelism give the data-parallel group), or None for one that is already averaged. shard_group: the process
    group (or "world") whose ranks hold different parameters as plain tensors, as in `ZeroRedundancyOptimizer`,
    DeepSpeed's ZeRO and FSDP1: what is summed over the model is added over it (default None; FSDP2 and tensor
    parallelism need nothing). Where it is forgotten, or one rank alone holds some of the parameters (experts), every
    rank chooses a step of its own and what they hold in common drifts apart; `metrics()` warns of it if the method
    needs the loss, with which its numbers are compared over loss_group in every step, while for other methods nothing
    goes from rank to rank that would show it. kahan_sum: keep what rounding takes from float16 and bfloat16 parameters
    in a slot, so that small steps add up (default None: for methods that measure how far the parameters moved).
    stochastic_rounding: round bfloat16 parameters and slots up or down at random instead, without bias and without
    memory. clip_grad_norm: scale gradients so that their norm, over all tensors that take part, is at most this
    (default None: no clipping), as `torch.nn.utils.clip_grad_norm_` does before the step, but without writing them; the
    norm from before is in `metrics()["grad_norm"]`. execution: "reference" runs the verbs as written, "native" as
    compiled kernels (needs numba), "auto" (default) as kernels where they exist. fused, foreach, capturable: options of
    torch.optim, also in groups: any value is accepted and changes nothing, since kernels are fused wherever they exist
    and a step on CUDA can be captured. differentiable, amsgrad, decoupled_weight_decay: likewise, if they say what is
    so here: False, False, whether weight decay is decoupled.
    """

    gradient: Any
    around: Any
    maximize: bool
    skip_nonfinite: bool
    slot_dtype: torch.dtype | None
    loss_group: Any
    shard_group: Any
    kahan_sum: bool | None
    stochastic_rounding: bool
    clip_grad_norm: float | None
    execution: str
    fused: bool | None
    foreach: bool | None
    capturable: bool
    differentiable: bool
    amsgrad: bool
    decoupled_weight_decay: bool
