"""Normalize-and-Project: a normalisation in front of every activation of a model."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import batchnorm, conv, dropout, instancenorm, pooling

from untuned.wrappers.weights import kind_of


class ChannelRMSNorm(nn.Module):
    """RMSNorm of [batch, channels, ...]: divides by the root mean square over all but the batch, scales channels."""

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True, device: Any = None, dtype: Any = None):
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.rms_norm(x, x.shape[1:], None, self.eps)
        return y if self.weight is None else y * self.weight.reshape(-1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, affine={self.weight is not None}"


JOINT, PULLED = "joint", "pulled"  # how a projector treats scale and offset of a normalisation
ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Threshold, nn.GLU),
)
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)  # f(c x) = c f(x) for c > 0
_OPAQUE = (  # activations inside, or gates
    *(nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
_NORMS = (
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, batchnorm._NormBase, instancenorm._InstanceNorm),
    ChannelRMSNorm,
)
_POOLS = tuple(t for name, t in vars(pooling).items() if "Pool" in name and isinstance(t, type))
_SAME = (nn.Identity, dropout._DropoutNd, nn.Upsample, *_NORMS)  # and pools: as many features come out as go in
_LINEAR = (nn.Linear, conv._ConvNd, nn.Bilinear, nn.MultiheadAttention)


def _words(text: str) -> set[str]:
    return set(text.split())


# Functions and methods that are no activation. Any other is one that nothing is known of, and the model is refused.
_MULTIPLIES = _words("matmul mm bmm addmm baddbmm einsum linear bilinear scaled_dot_product_attention")
_MULTIPLIES |= {f"conv{of}{n}d" for of in ("", "_transpose") for n in (1, 2, 3)}
_ELEMENTWISE = _words("add iadd add_ sub isub sub_ rsub mul imul mul_ div div_ truediv itruediv neg")
_COPIES = _words("contiguous clone detach to float double half bfloat16 type_as dropout dropout1d dropout2d dropout3d")
_SHAPES = _words("""
    getitem getattr cat concat stack chunk split unbind flatten unflatten reshape view view_as permute transpose t
    swapaxes movedim squeeze unsqueeze expand expand_as repeat repeat_interleave tile roll flip pad narrow gather
    index_select size dim numel len floordiv mod eq ne lt le gt ge mean sum softmax log_softmax masked_fill tril triu
    embedding normalize layer_norm rms_norm group_norm batch_norm instance_norm interpolate upsample pixel_shuffle
    pixel_unshuffle unfold fold arange zeros ones zeros_like ones_like
""")
_SHAPES |= {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
_HARMLESS = _MULTIPLIES | _ELEMENTWISE | _COPIES | _SHAPES


@dataclasses.dataclass(frozen=True)
class Normed:
    """One normalisation that was put in: its name in the model, its type, the features it has, what follows it."""

    name: str
    kind: str
    features: int
    activation: str
    affine: str  # "joint", "pulled", "free" or "none"
    bias_removed: str | None = None


@dataclasses.dataclass(frozen=True)
class NormReport:
    """What `insert_norms` did: normalisations it put in, and activations it left alone, with the reason."""

    layers: list[Normed]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f"{one.name}: {one.kind} of {one.features} features before {one.activation}, scale and offset {one.affine}"
            + (f", {one.bias_removed} removed" if one.bias_removed else "")
            for one in self.layers
        ]
        return "\n".join([*lines, *(f"{name}: left alone, {why}" for name, why in self.left.items())])


def marked(module: nn.Module) -> str | None:
    """JOINT or PULLED for a normalisation that `insert_norms` made so."""
    return getattr(module, "projected_as", None)


def insert_norms(
    model: nn.Module,
    kind: str = "layernorm",
    where: str = "pre_activation",
    affine: str = "joint",
    *,
    eps: float = 1e-5,
    activations: tuple[type[nn.Module], ...] = (),
) -> NormReport:
    """Put a normalisation before every activation of a model, in place: arXiv 2407.01800.

    The forward is traced by `torch.fx`, so that the order in which modules are applied is known. An activation module
    becomes `Sequential(norm, activation)` under its name; all other names stay. After a linear layer the features of
    the last dimension are normalised (`nn.LayerNorm`, `nn.RMSNorm`); after a convolution each sample over its channels
    and positions, with a scale per channel (`nn.GroupNorm(1, channels)`, `ChannelRMSNorm`), so inputs need a batch
    dimension. The bias of a layer that only goes into such a normalisation is removed: added to W x it would keep W
    from being scale-invariant, and the offset of the normalisation takes its place. Left alone, and named in the
    report: activations right after a normalisation, those after which no layer with weights follows (outputs, whose
    scale matters), and those of one feature. Softmax counts as no activation, attention as a layer.

    affine: "joint" has a scale and an offset that `WeightProjector` projects together where the activation is
    positively homogeneous (ReLU, leaky ReLU, PReLU), and may pull towards (1, 0) before others; "free" leaves them to
    the optimizer; "none" has none. RMS norms have no offset. `activations` are modules of your own that are
    activations, too. Use it before building the optimizer and before DDP, FSDP or compiling, since parameters change.

    Raises TypeError or ValueError in one sentence, with nothing changed, for models that cannot be traced, and for
    activations that cannot be seen: functions called in a forward, modules that hide them (`nn.LSTM`,
    `nn.TransformerEncoderLayer`), modules called more than once, and those whose number of features is not known.

    >>> import torch, untuned
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> print(untuned.wrappers.insert_norms(model))
    1.norm: LayerNorm of 8 features before ReLU, scale and offset joint, 0.bias removed
    """
    for name, value, values in (
        ("kind", kind, ("layernorm", "rmsnorm")),
        ("where", where, ("pre_activation",)),
        ("affine", affine, ("joint", "free", "none")),
    ):
        if value not in values:
            raise ValueError(f"insert_norms: {name} must be {' or '.join(map(repr, values))}, not {value!r}.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"insert_norms takes a torch.nn.Module, not {kind_of(model)}.")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
        raise ValueError(f"insert_norms: eps must be a number in [0, inf), not {eps!r}.")
    if not isinstance(activations, tuple | list) or not all(isinstance(one, type) for one in activations):
        raise TypeError(f"insert_norms: activations must be a tuple of classes of modules, not {activations!r}.")
    seen = _Seen(model, (*ACTIVATIONS, *activations))
    if not seen.activations:
        raise ValueError(f"insert_norms: {type(model).__name__} calls no activation that a normalisation can precede.")
    planned, left = dict[str, tuple[fx.Node, int, str]](), dict[str, str]()
    for node in seen.activations:
        name, before = str(node.target), node.all_input_nodes[0]
        if isinstance(seen.module(before), _NORMS):
            left[name] = "a normalisation precedes it"
        elif not seen.leads_to_a_layer(node):
            left[name] = "no layer with weights follows it"
        elif (found := seen.features(before)) is None:
            raise ValueError(
                f"insert_norms cannot see how many features reach '{name}': put the activation right behind the layer "
                f"that makes them."
            )
        elif found[0] == 1:
            left[name] = "it has one feature"
        else:
            seen.check_called_once(node)
            planned[name] = (node, *found)
    layers = list[Normed]()
    insides = {node for node, _, _ in planned.values()}
    for name, (node, features, along) in planned.items():
        activation = seen.modules[name]
        removed = seen.redundant_bias(node.all_input_nodes[0], insides)
        weight = seen.weight_before(node)
        norm = _norm(kind, along, features, eps, affine != "none", device=weight.device, dtype=weight.dtype)
        how = affine
        if affine == "joint":
            how = JOINT if isinstance(activation, HOMOGENEOUS) else PULLED
            norm.projected_as = how
        layers.append(
            Normed(
                *(f"{name}.norm", type(norm).__name__, features, type(activation).__name__, how),
                f"{removed}.bias" if removed else None,
            )
        )
        parent, _, leaf = name.rpartition(".")
        seen.modules[parent]._modules[leaf] = nn.Sequential(OrderedDict(norm=norm, activation=activation))
        if removed:
            seen.modules[removed].register_parameter("bias", None)
    return NormReport(layers, left)


def _norm(kind: str, along: str, features: int, eps: float, affine: bool, **place: Any) -> Any:
    if along == "channels":
        if kind == "rmsnorm":
            return ChannelRMSNorm(features, eps, affine, **place)
        return nn.GroupNorm(1, features, eps, affine, **place)
    return (nn.RMSNorm if kind == "rmsnorm" else nn.LayerNorm)(features, eps, affine, **place)


class _Tracer(fx.Tracer):
    def __init__(self, activations: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.activations = activations

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.activations) or super().is_leaf_module(m, module_qualified_name)


class _Seen:
    """The graph of a model's forward, and what follows from it; refuses what cannot be seen."""

    def __init__(self, model: nn.Module, activations: tuple[type[nn.Module], ...]) -> None:
        title = type(model).__name__
        try:
            graph = _Tracer(activations).trace(model)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise TypeError(f"insert_norms cannot trace {title}: {reason or type(error).__name__}.") from None
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.nodes = list(graph.nodes)
        for node in self.nodes:
            if isinstance(self.module(node), _OPAQUE):
                raise TypeError(
                    f"insert_norms cannot see the activations inside '{node.target}', a "
                    f"{type(self.module(node)).__name__}."
                )
            if node.op in ("call_function", "call_method") and _called(node) not in _HARMLESS:
                raise TypeError(
                    f"insert_norms: a forward of {title} calls {_called(node)}(), before which no normalisation can be "
                    f"put; call a module in its place, such as torch.nn.ReLU()."
                )
        self.activations = [node for node in self.nodes if isinstance(self.module(node), activations)]
        self.calls = Counter(str(node.target) for node in self.nodes if node.op == "call_module")

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def attribute(self, node: fx.Node) -> Any:
        """What a node reads off the model, as layer.bias."""
        prefix, _, leaf = str(node.target).rpartition(".")
        return getattr(self.modules.get(prefix), leaf, None)

    def check_called_once(self, node: fx.Node) -> None:
        module, name = self.module(node), str(node.target)
        names = [other for other, m in self.modules.items() if m is module]
        if self.calls[name] > 1 or len(names) > 1:
            how = f"called {self.calls[name]} times" if self.calls[name] > 1 else f"also '{names[-1]}'"
            raise ValueError(f"insert_norms: the activation '{name}' is {how}; each call needs a module of its own.")

    def leads_to_a_layer(self, node: fx.Node) -> bool:
        """Whether something with weights comes after it on the way to the output."""
        ahead, passed = list(node.users), set[fx.Node]()
        while ahead:
            user = ahead.pop()
            if isinstance(self.module(user), (*_LINEAR, *_OPAQUE)) or _called(user) in _MULTIPLIES:
                return True
            if user not in passed:
                passed.add(user)
                ahead += user.users
        return False

    def weight_before(self, node: fx.Node) -> torch.Tensor:
        """A parameter of the last layer before it, which says on what device and of what dtype a normalisation is."""
        behind, passed = list(node.all_input_nodes), set[fx.Node]()
        while behind:
            maker = behind.pop(0)
            if (module := self.module(maker)) is not None and (found := next(module.parameters(), None)) is not None:
                return found
            if maker not in passed:
                passed.add(maker)
                behind += maker.all_input_nodes
        return torch.empty(0)

    def features(self, node: fx.Node) -> tuple[int, str] | None:
        """How many features the result has, and where: in the "last" dimension or in "channels", the second."""
        module = self.module(node)
        if isinstance(module, nn.Linear | nn.Bilinear):
            return module.out_features, "last"
        if isinstance(module, conv._ConvNd):
            return module.out_channels, "channels"
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if isinstance(module, (*_SAME, *ACTIVATIONS)) and not isinstance(module, nn.GLU):
            return self.features(inputs[0])
        if isinstance(module, _POOLS):
            found = self.features(inputs[0])
            return found if found and found[1] == "channels" else None
        if module is None and _called(node) in _COPIES | _ELEMENTWISE:
            every = {found for n in inputs if (found := self.features(n))}
            several = {found for found in every if found[0] > 1} or every  # one feature goes with any number of them
            return several.pop() if len(several) == 1 else None
        return None

    def redundant_bias(self, node: fx.Node, insides: set[fx.Node]) -> str | None:
        """The layer that makes this, if its bias goes nowhere but into normalisations."""
        module, name = self.module(node), str(node.target)
        if not isinstance(module, nn.Linear | conv._ConvNd) or module._parameters.get("bias") is None:
            return None
        calls = [n for n in self.nodes if n.op == "call_module" and self.module(n) is module]
        if any(n.op == "get_attr" and self.attribute(n) is module.bias for n in self.nodes):
            return None  # the forward reads it itself
        return name if all(user in insides for n in calls for user in n.users) else None


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls, '' for other nodes."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target)) if node.op == "call_function" else ""
