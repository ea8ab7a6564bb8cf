"""The recorder in training loops: it changes nothing, goes on bit for bit, and refuses in one sentence."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import untuned
from untuned.diagnostics import TrajectoryRecorder, trajectory_map


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for k in steps:
        torch.manual_seed(k)
        x = torch.randn(8, 4, dtype=next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :2].square()).square().mean()
        loss.backward()
        optimizer.step() if isinstance(optimizer, torch.optim.SGD) else optimizer.step(loss=loss)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def bits(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) or bool(
            (torch.isnan(a) == torch.isnan(b)).all() and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---------------------------------------------------------------- in the loop


@pytest.mark.parametrize("build", [sgd, lambda m: untuned.create(m, "prodigy"), lambda m: untuned.create(m, "momo")])
def test_attaching_changes_no_number(build: Any) -> None:
    ends = []
    for attach in (False, True):
        model = network()
        optimizer = build(model)
        random = torch.get_rng_state()
        if attach:
            recorder = TrajectoryRecorder(model, every=2, groups="layer", sketch=32)
            recorder.attach(optimizer)
            assert torch.equal(random, torch.get_rng_state())
        train(model, optimizer, range(12))
        if attach:
            recorder.summary()
            recorder.map()
            assert len(recorder.series().steps) == 7
        ends.append([*bits(model), torch.get_rng_state()])
    assert same(*ends)


def test_the_hook_counts_steps_until_it_is_removed() -> None:
    model = network()
    optimizer = sgd(model)
    recorder = TrajectoryRecorder(model, every=3)
    handle = recorder.attach(optimizer)
    train(model, optimizer, range(7))
    assert recorder.attached is optimizer and recorder.steps == 7
    handle.remove()
    train(model, optimizer, range(7, 14))
    assert recorder.attached is None and recorder.steps == 7
    assert recorder.series().steps.tolist() == [0, 3, 6]
    recorder.attach(optimizer)
    train(model, optimizer, range(14, 16))
    assert recorder.series().steps.tolist() == [0, 3, 6, 9]


def test_attached_twice_is_refused_and_nothing_is_lost() -> None:
    model = network()
    optimizer = sgd(model)
    recorder = TrajectoryRecorder(model, every=1)
    recorder.attach(optimizer)
    with pytest.raises(ValueError, match=r"^TrajectoryRecorder is attached to this optimizer already; remove\(\) its"):
        recorder.attach(optimizer)
    with pytest.raises(ValueError, match="attached to another optimizer already"):
        recorder.attach(sgd(model))
    train(model, optimizer, range(3))
    assert recorder.series().steps.tolist() == [0, 1, 2, 3]


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="steps none of the parameters"):
        TrajectoryRecorder(network()).attach(sgd(network()))
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer, not an object of type int"):
        TrajectoryRecorder(network()).attach(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("center", ["origin", "init"])
def test_what_streams_by_is_what_the_checkpoints_say(dtype: torch.dtype, center: str) -> None:
    model = network(dtype)
    optimizer = sgd(model)
    recorder = TrajectoryRecorder(model, every=2, center=center, groups="layer")
    recorder.attach(optimizer)
    checkpoints = [copy.deepcopy(model.state_dict())]
    for k in range(10):
        train(model, optimizer, range(2 * k, 2 * k + 2))
        checkpoints.append(copy.deepcopy(model.state_dict()))
    exact = trajectory_map(checkpoints, center, "layer").measures
    stream = recorder.summary()
    assert list(stream) == list(exact) == ["all", "0", "1", "4"]
    for group, one in stream.items():
        for name, value in vars(one).items():
            if name != "effective_rank":
                other = getattr(exact[group], name)
                assert value == pytest.approx(other, rel=1e-5 if dtype == torch.float32 else 1e-9), (group, name)
    assert exact["1"].norm_start == pytest.approx(4.0)  # 16 weights of one, and 16 offsets: no running statistics


def test_a_tiny_move_of_a_large_vector_is_not_lost() -> None:
    """theta_0 is 1,000 times as long as the moves: rounded after the difference, the centred angles stay."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(1000 * torch.randn(1000, generator=generator).double())
    start = p.detach().clone()
    recorder = TrajectoryRecorder([("p", p)], every=1, center="init", sketch=256)
    moves = [start + 1e-9 * torch.randn(1000, generator=generator).double() for _ in range(5)]
    for move in moves:
        p.data.copy_(move)
        recorder.step()
    rows = torch.stack(moves) - start
    unit = nn.functional.normalize(rows, dim=1, eps=0.0)
    assert recorder.summary()["all"].mds == pytest.approx(float(unit.mean(0).square().sum()), abs=1e-13)
    assert recorder.series().distance[1:] == pytest.approx(rows.norm(dim=1).numpy(), rel=1e-12)
    assert np.abs(recorder.map().matrix[1:, 1:] - (unit @ unit.T).numpy()).max() < 0.3
    half = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    halves = TrajectoryRecorder([("half", half)], every=1)
    assert halves.series().norm[0] == 64.0  # the sum of squares leaves bfloat16 and float16 behind


def test_tied_parameters_count_once_and_complex_ones_as_two_numbers() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    nn.init.ones_(model["a"].weight)
    model["b"].weight = model["a"].weight
    assert TrajectoryRecorder(model).series().norm[0] == pytest.approx(3.0)
    pairs = list(model.named_parameters(remove_duplicate=False))
    assert len(pairs) == 2 and TrajectoryRecorder(pairs).series().norm[0] == pytest.approx(3.0)
    p = nn.Parameter(torch.tensor([3 + 4j, 12j]))
    assert TrajectoryRecorder([("p", p)]).series().norm[0] == pytest.approx(13.0)


def test_groups_by_a_function_leave_parameters_out() -> None:
    model = network()
    recorder = TrajectoryRecorder(model, groups=lambda name: "weights" if name.endswith("weight") else None)
    assert list(recorder.summary()) == ["all", "weights"]
    expected = math.sqrt(
        sum(float(p.detach().square().sum()) for n, p in model.named_parameters() if n.endswith("weight"))
    )
    assert recorder.series().norm[0] == pytest.approx(expected)


def test_points_that_are_not_finite_are_counted_and_leave_the_rest_alone() -> None:
    p = nn.Parameter(torch.ones(3))
    recorder = TrajectoryRecorder([("p", p)], every=1)
    p.data.fill_(2.0)
    recorder.step()
    before = copy.deepcopy(recorder.state_dict())
    for bad in (math.nan, math.inf):
        p.data[1] = bad
        assert recorder.record() is False
    after = recorder.state_dict()
    assert recorder.left_out == 2 and same({**before, "left_out": 2}, after)
    p.data.fill_(3.0)
    recorder.step()
    assert recorder.summary()["all"].mds == pytest.approx(1.0)
    assert recorder.series().path[-1] == pytest.approx(2 * math.sqrt(3))


def test_old_sketches_thin_out() -> None:
    p = nn.Parameter(torch.ones(30))
    recorder = TrajectoryRecorder([("p", p)], every=1, sketch=16, points=5)
    for _ in range(22):
        p.data.add_(torch.randn(30, generator=torch.Generator().manual_seed(0)))
        recorder.step()
    found = recorder.map()
    assert found.steps.tolist() == [0, 8, 16] and found.matrix.shape == (3, 3)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("center", ["origin", "init"])
def test_it_goes_on_bit_for_bit(center: str) -> None:
    def start() -> tuple[nn.Module, Any, TrajectoryRecorder]:
        model = network()
        recorder = TrajectoryRecorder(model, every=2, center=center, groups="layer", sketch=32, points=6)
        optimizer = sgd(model)
        recorder.attach(optimizer)
        return model, optimizer, recorder

    model, optimizer, whole = start()
    train(model, optimizer, range(9))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "o": optimizer.state_dict(), "recorder": whole.state_dict()}, file)
    train(model, optimizer, range(9, 20))

    again, optimizer, resumed = start()
    train(again, optimizer, range(100, 103))  # it has been elsewhere
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["o"])
    resumed.load_state_dict(saved["recorder"])
    train(again, optimizer, range(9, 20))
    assert same(bits(model), bits(again))
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(
        [*map(str, vars(whole.summary()["all"]).values())], [*map(str, vars(resumed.summary()["all"]).values())]
    )
    assert np.array_equal(whole.map().matrix, resumed.map().matrix, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 3}, "other every"),
        ({"center": "init"}, "other center"),
        ({"sketch": 8}, "other sketch"),
        ({"groups": "layer"}, "other parameters or groups"),
    ],
)
def test_a_checkpoint_of_another_recorder_is_refused(options: dict[str, Any], said: str) -> None:
    model = network()
    recorder = TrajectoryRecorder(model, **{"every": 2} | options)
    before = copy.deepcopy(recorder.state_dict())
    with pytest.raises(ValueError, match=f"^TrajectoryRecorder: the checkpoint is of a recorder with {said}.$"):
        recorder.load_state_dict(TrajectoryRecorder(model, every=2).state_dict())
    assert same(before, recorder.state_dict())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("target", "options", "error", "said"),
    [
        (network(), {"every": 0}, ValueError, "every must be a whole number from 1, not 0"),
        (network(), {"every": 1.5}, ValueError, "every must be a whole number from 1, not 1.5"),
        (network(), {"sketch": -1}, ValueError, "sketch must be a whole number from 0"),
        (network(), {"center": "middle"}, ValueError, "center must be 'origin' or 'init', not 'middle'"),
        (network(), {"groups": "rows"}, ValueError, "groups are None, 'layer', 'tensor' or a function"),
        (network(), {"groups": lambda name: None}, ValueError, "has no parameter to look at"),
        (network(), {"groups": lambda name: "all"}, ValueError, "no group may be named 'all'"),
        ([], {}, ValueError, "has no parameter to look at"),
        (3, {}, TypeError, "takes a model or pairs of name and parameter, not an object of type int"),
        ([torch.ones(2)], {}, TypeError, "not an object of type Tensor among them"),
        ([("n", torch.ones(2, dtype=torch.int64))], {}, TypeError, "'n' holds torch.int64"),
        (nn.LazyLinear(2), {}, ValueError, "'weight' has no values yet"),
        ([("p", torch.tensor([math.nan]))], {}, ValueError, "not finite at the start"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(target: Any, options: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        TrajectoryRecorder(target, **options)


def test_what_is_not_there_is_said() -> None:
    recorder = TrajectoryRecorder(network())
    with pytest.raises(ValueError, match="there is no group 'head', but all"):
        recorder.series("head")
    with pytest.raises(ValueError, match="keeps no sketches"):
        recorder.map()


# ---------------------------------------------------------------- maps of checkpoints


def states(count: int = 4) -> list[dict[str, Tensor]]:
    model = network()
    optimizer, found = sgd(model), []
    for k in range(count):
        found.append(copy.deepcopy(model.state_dict()))
        train(model, optimizer, range(k, k + 1))
    return found


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_files_give_the_same_map_as_state_dicts(tmp_path: Path, key: str | None) -> None:
    found, paths = states(), []
    for k, state in enumerate(found):
        paths.append(tmp_path / f"{k}.pt")
        torch.save(state if key is None else {key: state, "epoch": k}, paths[-1])
    expected = trajectory_map(found, "init", "tensor", steps=[0, 10, 20, 30])
    read = trajectory_map(paths, "init", "tensor", steps=[0, 10, 20, 30])
    assert read.measures.keys() == expected.measures.keys() and read.steps.tolist() == [0, 10, 20, 30]
    for group, matrix in expected.matrices.items():
        assert np.array_equal(matrix, read.matrices[group], equal_nan=True)


def test_buffers_are_left_out_and_names_choose(tmp_path: Path) -> None:
    found, model = states(), network()
    assert set(trajectory_map(found, by="tensor").matrices) == {"all", *(n for n, _ in model.named_parameters())}
    by_model = trajectory_map(found, names=model).matrix
    assert np.array_equal(by_model, trajectory_map(found).matrix)
    assert not np.array_equal(by_model, trajectory_map(found, names=["1.running_mean"]).matrix)
    tied = [{**state, "tied": state["0.weight"]} for state in found]
    assert np.array_equal(by_model, trajectory_map(tied).matrix)


def test_blocks_of_columns_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    found = states()
    whole = trajectory_map(found).matrix
    monkeypatch.setattr("untuned.diagnostics.checkpoints._NUMBERS", 40)
    assert np.abs(trajectory_map(found).matrix - whole).max() < 1e-13


def test_checkpoints_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    good, model = states(2), network()
    (tmp_path / "text.pt").write_text("nothing of torch")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "folder").mkdir()
    lacking = {name: value for name, value in good[1].items() if name != "4.bias"}
    cases: list[tuple[list[Any], str]] = [
        (good[:1], "needs two checkpoints or more, not 1"),
        ([good[0], lacking], "has no tensor '4.bias'"),
        ([good[0], {**good[1], "4.bias": torch.ones(7)}], r"'4.bias' has the shape \(2,\) in the first"),
        ([good[0], {**good[1], "4.bias": torch.tensor([1, math.nan])}], "'4.bias' is not finite in checkpoint 1"),
        ([model.state_dict(), model.state_dict()], "checkpoints 0 and 1 are the same tensors; copy each"),
        ([good[0], tmp_path / "none.pt"], "there is no file"),
        ([good[0], tmp_path / "text.pt"], "is no file of tensors"),
        ([good[0], tmp_path / "list.pt"], "holds no state dict"),
        ([good[0], tmp_path / "folder"], "holds neither model.safetensors nor pytorch_model.bin"),
    ]
    for checkpoints, said in cases:
        with pytest.raises(ValueError, match=said):
            trajectory_map(checkpoints)
    with pytest.raises(ValueError, match="there are 2 checkpoints, but 3 steps"):
        trajectory_map(good, steps=[0, 1, 2])
