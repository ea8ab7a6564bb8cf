"""Arithmetic as another processor may round it.

IEEE 754 settles + - * / of two numbers, so these are equal on every processor. A root, a power, an exponential, a
product fused with a sum, and the order in which many numbers are added are not settled: vector libraries choose their
own code for each processor, and the last places differ (on x86 torch's float32 square root misses the nearest number
one time in seven). A sum then differs by roundings of its *terms*, eps sum |t_i|, however small the sum itself is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FUNCTIONS = {"sqrt", "rsqrt", "pow", "exp", "log", "log1p", "expm1", "sin", "cos", "tanh", "sigmoid", "softplus"}
FUNCTIONS |= {"gelu", "_softmax", "_log_softmax", "logsumexp", "linalg_vector_norm", "norm", "var", "std"}
# Given the absolute values of their tensors, these give the sum of the absolute values of their terms.
SUMS = {"sum", "mean", "cumsum", "dot", "mv", "mm", "bmm", "addmv", "addmm", "baddbmm", "addcmul", "lerp"}
SUMS |= {"convolution"}
SETTLED = {"add", "sub", "rsub", "mul", "div"}


class OtherProcessor(TorchDispatchMode):
    """Moves each result that IEEE 754 leaves open by `times` roundings: of the result, or of its terms if it is a sum.

    With `every`, those settled in float32 as well: Monte Carlo arithmetic, which shows what all such roundings do.
    The direction follows from the result's own bits and the seed, so that what is computed twice stays equal. A result
    whose last bits are zero, such as the root of 4, was exact and stays.
    """

    def __init__(self, seed: int, times: int = 1, every: bool = False) -> None:
        super().__init__()
        self.seed, self.times, self.every = seed, times, every

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removeprefix("_foreach_").removesuffix("_")
        sizes = None
        if name in SUMS or (name == "add" and kwargs.get("alpha", 1) != 1):
            factors = {key: abs(kwargs[key]) for key in ("alpha", "value") if key in kwargs}
            positive = tree_map_only(torch.Tensor, lambda t: t.abs() if t.is_floating_point() else t, args)
            sizes = func(*positive, **kwargs | factors)
            sizes = positive[0] if sizes is None else sizes
        out = func(*args, **kwargs)
        results = tree_leaves(args[0] if out is None else out)
        settled = self.every and name in SETTLED and getattr(results[0], "dtype", None) is torch.float32
        if sizes is not None or name in FUNCTIONS or settled:
            for result, size in zip(results, results if sizes is None else tree_leaves(sizes), strict=True):
                self.move(result, size)
        return out

    def move(self, result: Any, size: Any) -> None:
        if type(result) in (torch.Tensor, torch.nn.Parameter) and result.dtype in (torch.float32, torch.float64):
            values = result.detach()
            last = torch.frexp(values)[0].double() * (2**12 if result.dtype == torch.float32 else 2**26)
            bits = (last * 2**27).long() ^ self.seed
            bits = (bits ^ (bits >> 29)) * 2654435761
            way = torch.where(last == last.round(), 0, 1 - ((bits ^ (bits >> 17)) & 2))
            values.add_((way * (self.times * torch.finfo(result.dtype).eps) * size.detach().abs()).to(result.dtype))
