"""LoRASC over layers of this library: what a merge, the noise and a boundary leave behind, and what is refused."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untuned
from untuned.systems.lorasc import CascadeLoRA, LoRALinear, add_lora, remove_lora

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
Y = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))
QUIET: dict[str, Any] = {"noise": 0.0, "pace": 1.0}


def mlp(seed: int = 0, rank: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 12)).to(dtype)
    return add_lora(plain, ["0", "2"], rank=rank)


def adamw(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X.to(model[0].weight.dtype)) - Y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def weights(model: nn.Module) -> list[Tensor]:
    return [part.weight.detach().clone() for part in model if isinstance(part, nn.Linear)]


def equal(these: list[Tensor], those: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def run(cascades: int, steps: int, seed: int = 0, **options: Any) -> tuple[nn.Module, CascadeLoRA]:
    model = mlp(seed)
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, **options)
    for _ in range(cascades):
        cascade.begin()
        train(model, optimizer, steps)
        cascade.end()
    return model, cascade


# ---------------------------------------------------------------- exact identities


@pytest.mark.parametrize("slow", ["product", "last", "window"])
@pytest.mark.parametrize("merge", ["cascade", "final"])
def test_one_cascade_with_pace_one_and_no_noise_is_lora_bitwise(slow: Any, merge: Any) -> None:
    model = mlp()
    plain = copy.deepcopy(model)
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, slow=slow, merge=merge, **QUIET)
    cascade.begin()
    assert train(model, optimizer, 20) == train(plain, adamw(plain), 20)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    cascade.finish()
    merged = [(p.weight + p.scaling * (p.lora_b @ p.lora_a)).detach() for p in plain if isinstance(p, LoRALinear)]
    assert equal(weights(model), merged)
    assert equal(weights(remove_lora(plain)), merged)


def test_a_merge_with_pace_one_changes_the_function_by_rounding_only() -> None:
    """The specification's prototype found 3e-6 to 7e-6 in float32."""
    model = mlp()
    optimizer = adamw(model, lr=3e-2)
    cascade = CascadeLoRA(model, optimizer, slow="last", **QUIET)
    for _ in range(6):
        cascade.begin()
        train(model, optimizer, 50)
        before = model(X)
        cascade.end()
        assert 0 < (model(X) - before).abs().max() < 7e-6
        assert before.abs().max() > 1


def test_after_a_boundary_the_function_is_that_of_the_backbone() -> None:
    model, cascade = run(2, 10)
    assert all(not part.lora_b.any() and part.lora_a.any() for part in model if isinstance(part, LoRALinear))
    plain = nn.Sequential(*(copy.deepcopy(part) for part in remove_lora(model)))
    assert torch.equal(plain(X), model(X))
    assert cascade.cascades == 2


def test_a_pace_of_zero_leaves_the_weights() -> None:
    before = weights(mlp())
    for slow in ("product", "last"):
        assert equal(weights(run(3, 5, pace=0.0, slow=slow)[0]), before)


@pytest.mark.parametrize("pace", [0.5, 0.25])
def test_merging_an_average_is_sgd_with_dampened_momentum(pace: float) -> None:
    """Over 50 cascades, with -D_t as gradients, the weights are bitwise those of torch.optim.SGD and untuned.SGD."""
    model = mlp()
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, pace=pace, noise=0.0)
    expert = cascade.experts[0]
    twins = [nn.Parameter(expert.weight.detach().clone()) for _ in range(2)]
    options = {"lr": 1.0, "momentum": 1 - pace, "dampening": 1 - pace}
    sgds = [torch.optim.SGD([twins[0]], **options), untuned.SGD([twins[1]], **options)]
    for k in range(51):
        if k:  # the first gradient, which torch does not dampen, is zero
            cascade.begin()
            train(model, optimizer, 3)
        for twin, sgd in zip(twins, sgds, strict=True):
            twin.grad = -expert.delta() if k else torch.zeros_like(twin)
            sgd.step()
        if k:
            cascade.end()
            assert expert.delta().abs().max() == 0
            assert all(torch.equal(expert.weight, twin) for twin in twins)
    assert (expert.weight - weights(mlp())[0]).abs().max() > 0.1


def test_the_rank_of_the_change_grows_by_that_of_an_expert() -> None:
    first = weights(mlp(dtype=torch.float64))
    model = mlp(dtype=torch.float64)
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, noise=0.0)
    ranks = []
    for _ in range(8):
        cascade.begin()
        train(model, optimizer, 20)
        cascade.end()
        ranks.append([int(torch.linalg.matrix_rank(w - w0)) for w, w0 in zip(weights(model), first, strict=True)])
    assert ranks == [[r, min(r, 12)] for r in (2, 4, 6, 8, 10, 12, 14, 16)]


# ---------------------------------------------------------------- the slow expert


@pytest.mark.parametrize(("slow", "options"), [("product", {}), ("last", {}), ("window", {"window": 2})])
@pytest.mark.parametrize("merge", ["cascade", "final"])
def test_what_is_merged_follows_the_table(slow: Any, options: dict[str, Any], merge: Any) -> None:
    """The slow expert after each cascade, computed here from the fast ones."""
    pace, model = 0.3, mlp(dtype=torch.float64)
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, slow=slow, pace=pace, merge=merge, noise=0.0, **options)
    expert, fast, slows = cascade.experts[1], list[Tensor](), list[Tensor]()
    first = expert.weight.detach().clone()
    for _ in range(4):
        cascade.begin()
        train(model, optimizer, 5)
        fast.append(expert.delta())
        cascade.end()
        average = sum(pace * (1 - pace) ** i * d for i, d in enumerate(fast[::-1]))
        slows.append({"product": average, "last": pace * fast[-1], "window": sum(fast[-2:]) / len(fast[-2:])}[slow])
        expected = first + sum(slows) if merge == "cascade" else first
        torch.testing.assert_close(expert.weight.detach(), expected)
    cascade.finish()
    torch.testing.assert_close(expert.weight.detach(), first + (sum(slows) if merge == "cascade" else slows[-1]))


def test_averaged_factors_are_where_the_next_expert_starts() -> None:
    model = mlp()
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, slow="factor", merge="final", pace=0.25, noise=0.0)
    expert, first = cascade.experts[0], weights(model)[0]
    slow = [f.detach().clone() for f in expert.factors]
    for _ in range(3):
        cascade.begin()
        train(model, optimizer, 5)
        slow = [0.75 * s + 0.25 * f.detach() for s, f in zip(slow, expert.factors, strict=True)]
        cascade.end()
        for factor, average in zip(expert.factors, slow, strict=True):
            torch.testing.assert_close(factor.detach(), average)
    cascade.finish()
    torch.testing.assert_close(expert.weight.detach(), first + expert.delta(*slow))
    assert expert.delta().abs().max() == 0


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("law", ["uniform", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_noise_is_that_of_its_law_and_leaves_no_bit(law: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = add_lora(nn.Sequential(nn.Linear(300, 200)).to(dtype), ["0"], rank=1)
    cascade = CascadeLoRA(model, adamw(model), noise=0.4, noise_law=law, slow="last")
    first, drawn = weights(model)[0], list[Tensor]()
    for _ in range(2):
        cascade.begin()
        drawn.append((weights(model)[0] - first).double())
        noise, spread = drawn[-1], first.double().std(correction=0).item()
        assert noise.std() == pytest.approx(0.4 * spread / math.sqrt(12), rel=0.02)
        assert abs(noise.mean()) < 4e-4
        top = noise.abs().max() / (0.2 * spread)
        assert (0.98 < top < 1.04) if law == "uniform" else (2 < top < 3.5)
        with cascade.without_noise():
            assert torch.equal(weights(model)[0], first)
        assert torch.equal((weights(model)[0] - first).double(), noise)
        cascade.end()
        assert torch.equal(weights(model)[0], first)
    assert abs(torch.corrcoef(torch.stack([d.flatten() for d in drawn]))[0, 1]) < 0.02


def test_noise_can_be_left_in_the_weights() -> None:
    model = mlp()
    first = weights(model)
    cascade = CascadeLoRA(model, adamw(model), keep_noise=True)
    noisy = []
    for _ in range(2):
        cascade.begin()
        noisy.append(weights(model))
        cascade.end()
        assert equal(weights(model), noisy[-1]) and not equal(weights(model), first)
    assert not equal(*noisy)


def test_experts_below_the_precision_of_bfloat16_add_up() -> None:
    """Each merge is a tenth of the distance between two bfloat16 numbers: added to W in bfloat16 all would be lost."""
    model = add_lora(nn.Sequential(nn.Linear(4, 4, bias=False)).bfloat16(), ["0"], rank=1)
    model[0].weight.fill_(1.0)
    cascade = CascadeLoRA(model, adamw(model), slow="last", **QUIET)
    for _ in range(20):
        cascade.begin()
        with torch.no_grad():
            model[0].lora_a.fill_(1.0)
            model[0].lora_b.fill_(2**-7 / 10)
        cascade.end()
    assert torch.equal(model[0].weight, torch.full((4, 4), 1 + 2 * 2**-7, dtype=torch.bfloat16))


# ---------------------------------------------------------------- boundaries and optimizers


OPTIMIZERS = {
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "torch SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "untuned AdamW": lambda p: untuned.AdamW(p, lr=1e-2),
    "untuned Prodigy": lambda p: untuned.Prodigy(p, d0=1e-3),
    "untuned SGD": lambda p: untuned.SGD(p, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_boundary_clears_what_the_optimizer_knows_of_the_experts_alone(name: str) -> None:
    model = mlp()
    model[2].bias.requires_grad_(True)
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    cascade = CascadeLoRA(model, optimizer)
    factors = [factor for expert in cascade.experts for factor in expert.factors]
    for _ in range(2):
        cascade.begin()
        train(model, optimizer, 4)
        assert all(optimizer.state[p] for p in factors)
        held = {key: copy.deepcopy(value) for key, value in optimizer.state[model[2].bias].items()}
        cascade.end()
        assert not any(p in optimizer.state for p in factors)
        assert held.keys() == optimizer.state[model[2].bias].keys() and held
        assert all(
            torch.equal(torch.as_tensor(held[k]), torch.as_tensor(v)) for k, v in optimizer.state[model[2].bias].items()
        )
    assert math.isfinite(train(model, optimizer, 3))


def test_a_second_cascade_trains_as_with_a_new_optimizer() -> None:
    """Bitwise: nothing of the first cascade is left in the optimizer."""
    for name in ("torch AdamW", "untuned AdamW", "untuned SGD"):
        model = mlp()
        optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
        cascade = CascadeLoRA(model, optimizer)
        cascade.begin()
        train(model, optimizer, 4)
        cascade.end()
        twin = copy.deepcopy(model)
        fresh = OPTIMIZERS[name]([p for p in twin.parameters() if p.requires_grad])
        assert train(model, optimizer, 4) == train(twin, fresh, 4), name


def test_of_an_averaging_method_the_averaged_point_is_merged() -> None:
    model = mlp()
    optimizer = untuned.AdamWScheduleFree([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    cascade = CascadeLoRA(model, optimizer, slow="last", **QUIET)
    cascade.begin()
    train(model, optimizer, 20)
    training = model(X)
    with optimizer.averaged_parameters():
        averaged = model(X)
    assert (averaged - training).abs().max() > 1e-3
    cascade.end()
    torch.testing.assert_close(model(X), averaged)
    train(model, optimizer, 3)


def test_steps_count_cascades_and_an_empty_one_leaves_nothing() -> None:
    model = mlp()
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, every=3, noise=0.5)
    cascade.begin()
    boundaries = []
    for _ in range(9):
        train(model, optimizer, 1)
        boundaries.append(cascade.step())
    assert boundaries == [False, False, True] * 3
    with cascade.without_noise():
        clean = weights(model)
    assert not equal(weights(model), clean)
    cascade.finish()
    assert cascade.cascades == 3 and cascade.finished and equal(weights(model), clean)
    by_hand = run(3, 3, noise=0.5)[0]
    assert equal(weights(by_hand), clean)


def test_a_cascade_that_is_cut_short_is_merged() -> None:
    model = mlp()
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, every=100)
    cascade.begin()
    train(model, optimizer, 1)
    cascade.step()
    cascade.finish()
    assert cascade.cascades == 1 and not equal(weights(model), weights(mlp()))


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "options",
    [
        {"every": 4},
        {"every": 4, "slow": "window", "window": 2, "noise_law": "gaussian"},
        {"every": 4, "slow": "factor", "merge": "final", "keep_noise": True},
        {"every": 4, "slow": "last", "noise": 0.0},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_resumes_bitwise_in_the_middle_of_a_cascade(options: dict[str, Any], dtype: torch.dtype) -> None:
    """From a file, into a model with other weights of its own, of which only the experts were saved."""

    def new(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, CascadeLoRA]:
        model = mlp(seed, dtype=dtype)
        optimizer = adamw(model)
        return model, optimizer, CascadeLoRA(model, optimizer, **options)

    def go_on(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, cascade: CascadeLoRA) -> None:
        for _ in range(steps):
            train(model, optimizer, 1)
            cascade.step()

    model, optimizer, cascade = new(0)
    cascade.begin()
    go_on(10, model, optimizer, cascade)
    small = {key: value for key, value in model.state_dict().items() if "lora" in key or "bias" in key}
    file = io.BytesIO()
    torch.save([small, optimizer.state_dict(), cascade.state_dict()], file)
    go_on(7, model, optimizer, cascade)
    cascade.finish()

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, its_optimizer, its_cascade = new(5)
    other.load_state_dict(saved[0], strict=False)
    its_optimizer.load_state_dict(saved[1])
    its_cascade.load_state_dict(saved[2])
    assert its_cascade.steps == 2 and its_cascade.running
    go_on(7, other, its_optimizer, its_cascade)
    its_cascade.finish()
    assert its_cascade.cascades == cascade.cascades == 5
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_of_other_options_or_experts_is_refused_whole() -> None:
    model, cascade = run(1, 2)
    before = weights(model)
    state = copy.deepcopy(cascade.state_dict())
    with pytest.raises(ValueError, match=r"^this is not a state dict of CascadeLoRA$"):
        cascade.load_state_dict({})
    with pytest.raises(ValueError, match=r"^the cascade was saved with pace=0\.5, and here it is 1\.0$"):
        CascadeLoRA(model, adamw(model), pace=1.0).load_state_dict(state)
    state["experts"]["7"] = state["experts"]["2"]
    with pytest.raises(ValueError, match=r"^the cascade was saved with an expert '7', and here is none$"):
        cascade.load_state_dict(state)
    del state["experts"]["7"], state["experts"]["2"]
    with pytest.raises(ValueError, match=r"^the cascade was saved without an expert '2' of this shape$"):
        cascade.load_state_dict(state)
    assert equal(weights(model), before) and cascade.cascades == 1


# ---------------------------------------------------------------- what is refused


def test_names_that_match_no_layer_are_refused_with_those_there_are() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^no layer is called 'query' .* the linear layers are: 0, 2$"):
        add_lora(model, ["0", "query"], rank=1)
    assert all(type(part) is not LoRALinear for part in model) and model[0].weight.requires_grad
    with pytest.raises(ValueError, match=r"^'1' is a Tanh, and LoRA is added to layers that are exactly nn\.Linear"):
        add_lora(model, ["1"], rank=1)
    attention = nn.MultiheadAttention(4, 2)  # reads the weight of its out_proj and never calls it
    with pytest.raises(ValueError, match=r"^'out_proj' is a NonDynamicallyQuantizableLinear"):
        add_lora(attention, ["out_proj"], rank=1)
    with pytest.raises(ValueError, match=r"^the rank of LoRA is a positive whole number, not 0$"):
        add_lora(model, ["0"], rank=0)
    with pytest.raises(ValueError, match=r"^alpha of LoRA is a positive number, not -1$"):
        add_lora(model, ["0"], rank=1, alpha=-1)


def test_models_that_cannot_be_merged_into_are_refused() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^the model has no LoRA layer: call add_lora"):
        CascadeLoRA(plain, torch.optim.SGD(plain.parameters(), lr=1.0))
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    add_lora(tied, ["0"], rank=1)
    with pytest.raises(ValueError, match=r"^'0' and '2' share one weight: merging an expert of one would change the"):
        CascadeLoRA(tied, adamw(tied))
    model = mlp()
    with pytest.raises(ValueError, match=r"^the optimizer does not train the expert of '0'"):
        CascadeLoRA(model, torch.optim.SGD(model[2].parameters(), lr=1.0))
    model[2].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"^the weight of '2' is trained itself: freeze it"):
        CascadeLoRA(model, adamw(model))
    quantised = mlp()
    quantised[0].weight = nn.Parameter(torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"^the weight of '0' is a torch\.int8: .* refuses weights that are quantised"):
        CascadeLoRA(quantised, adamw(quantised))
    with pytest.raises(ValueError, match=r"^the model has no adapter 'style'; it has none$"):
        CascadeLoRA(mlp(), adamw(mlp()), adapter="style")


def test_a_module_that_is_used_in_two_places_is_one_expert() -> None:
    shared = nn.Linear(3, 3)
    model = add_lora(nn.Sequential(shared, nn.Tanh(), shared), ["0"], rank=1)
    assert model[0] is model[2] and len(CascadeLoRA(model, adamw(model)).experts) == 1
    assert type(remove_lora(model)[0]) is nn.Linear and model[0] is model[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slow": "mean"}, r"^slow is one of 'product', 'window', 'factor', 'last', not 'mean'$"),
        ({"merge": "never"}, r"^merge is one of 'cascade', 'final', not 'never'$"),
        ({"noise_law": "cauchy"}, r"^noise_law is one of 'uniform', 'gaussian', not 'cauchy'$"),
        ({"pace": 1.5}, r"^pace is a number from 0 to 1, not 1\.5$"),
        ({"pace": math.nan}, r"^pace is a number from 0 to 1, not nan$"),
        ({"noise": -1}, r"^noise is a number from 0 on, not -1$"),
        ({"noise": math.inf}, r"^noise is a number from 0 on, not inf$"),
        ({"every": 0}, r"^every is a whole number from 1 on, not 0$"),
        ({"window": 1.5}, r"^window is a whole number from 1 on, not 1\.5$"),
        ({"seed": -1}, r"^seed is a whole number from 0 on, not -1$"),
        ({"slow": "factor"}, r'^slow="factor" needs merge="final"'),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=message):
        CascadeLoRA(model, adamw(model), **options)


def test_calls_out_of_order_are_refused() -> None:
    model = mlp()
    cascade = CascadeLoRA(model, adamw(model))
    for call in (cascade.step, cascade.end):
        with pytest.raises(RuntimeError, match=r"\(\) was called out of order, no cascade is running: begin\(\) one"):
            call()
    cascade.begin()
    with pytest.raises(
        RuntimeError, match=r"^begin\(\) was called out of order, a cascade is running: end\(\) it first"
    ):
        cascade.begin()
    cascade.finish()
    for call in (cascade.begin, cascade.step, cascade.end, cascade.finish):
        with pytest.raises(RuntimeError, match=r"\(\) was called after finish\(\): a new CascadeLoRA begins anew$"):
            call()


def test_an_expert_that_is_not_finite_is_not_merged() -> None:
    model = mlp()
    cascade = CascadeLoRA(model, adamw(model), noise=0.0)
    first = weights(model)
    cascade.begin()
    model[2].lora_b.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"^the expert of '2' is not finite, so it was not merged$"):
        cascade.end()
    assert equal(weights(model), first) and cascade.running and not cascade.cascades


def test_a_transformer_in_evaluation_has_the_experts() -> None:
    """nn.TransformerEncoderLayer has a fast path that would read the weights alone."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = layer.eval()(x)
        add_lora(layer, ["linear1", "linear2"], rank=2)
        torch.testing.assert_close(layer(x), plain)
        layer.linear1.lora_b.normal_()
        torch.testing.assert_close(layer.eval()(x), layer.train()(x))
        assert (layer.eval()(x) - plain).abs().max() > 0.1
