"""The log of gradient norms: what it holds, that it survives, and the scheduler that reads it."""

import copy
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import net, train
from torch import nn

import untuned
from untuned.directions import Gradient, Muon
from untuned.gradients import Norms
from untuned.schedules import NormRecorder, Refined, refine, tables
from untuned.schedules.norms import COLUMNS
from untuned.schedules.refined import power_for
from untuned.step_sizes import Fixed


def gradients(k: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    return [(1 + k) * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,))]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros_like(g)) for g in gradients(0)]


def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps numbered from 0, each with the gradients of its number."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for k in steps:
        for p, g in zip(params, gradients(k), strict=True):
            p.grad = g.clone()
        optimizer.step()


def expected(count: int, lr: float = 0.5) -> dict[str, Any]:
    flat = [torch.cat([g.flatten() for g in gradients(k)]) for k in range(count)]
    return {
        "step": list(range(1, count + 1)),
        "l1": [g.abs().sum().item() for g in flat],
        "l2": [g.norm().item() for g in flat],
        "lr": [lr] * count,
    }


def assert_log(path: Path, count: int) -> None:
    found, wanted = tables.read(path), expected(count)
    assert tuple(found) == COLUMNS
    for name in COLUMNS:
        assert found[name] == pytest.approx(wanted[name], rel=1e-13), name


class Nested(torch.optim.SGD):
    """Torch calls the hooks of both steps."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


OPTIMIZERS = {
    "a step that calls another": lambda p: Nested(p, lr=0.5),
    "torch SGD with decay": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
    "torch Adam, two groups": lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 7.0}], lr=0.5),
    "torch Adagrad, lr tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.5), foreach=False),
    "untuned SGD": lambda p: untuned.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1, clip_grad_norm=1.0),
    "untuned Prodigy": lambda p: untuned.Prodigy(p, lr=0.5),
}


@pytest.mark.parametrize("every", [1, 3, 1000])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_of_any_optimizer(tmp_path: Path, name: str, every: int) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    recorder = NormRecorder(optimizer, tmp_path / "norms", every)
    run(optimizer, range(7))
    recorder.close()
    assert_log(tmp_path / "norms", 7)
    assert len(list((tmp_path / "norms").iterdir())) == math.ceil(7 / every)
    run(optimizer, range(2))  # closed
    assert recorder.state_dict() == {"steps": 7}


def test_nothing_of_the_step_changes(tmp_path: Path) -> None:
    plain, watched = (untuned.Adam(parameters(), lr=0.5) for _ in range(2))
    NormRecorder(watched, tmp_path / "norms")
    run(plain, range(5))
    run(watched, range(5))
    for p, q in zip(plain.param_groups[0]["params"], watched.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
    copy.deepcopy(watched).step()


def test_low_precision_and_large_tensors_are_added_up_in_float64(tmp_path: Path) -> None:
    p = nn.Parameter(torch.zeros(1 << 22, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([p], lr=1.0)
    recorder = NormRecorder(optimizer, tmp_path / "norms")
    p.grad = torch.full_like(p, 0.125)
    optimizer.step()
    recorder.close()
    found = tables.read(tmp_path / "norms")
    assert (found["l1"][0], found["l2"][0]) == (0.125 * (1 << 22), 0.125 * (1 << 11))


def test_sparse_gradients_count_as_dense_ones(tmp_path: Path) -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    recorder = NormRecorder(optimizer, tmp_path / "norms")
    table(torch.tensor([1, 1, 3])).sum().backward()  # rows 2 2 and 1 1
    optimizer.step()
    recorder.close()
    found = tables.read(tmp_path / "norms")
    assert (found["l1"][0], found["l2"][0]) == (6, pytest.approx(10**0.5))


def test_numbers_of_the_optimizer_are_taken_as_they_are(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    group, steps = optimizer.param_groups[0], itertools.count(1)
    group |= {"grad_l1": torch.zeros((), dtype=torch.float64), "grad_l2": torch.zeros((), dtype=torch.float64)}
    optimizer.param_groups[0] = group

    def compute(*_: Any) -> None:  # in place, as the engine may
        k = next(steps)
        group["grad_l1"].fill_(k)
        group["grad_l2"].fill_(10 * k)

    optimizer.register_step_post_hook(compute)
    recorder = NormRecorder(optimizer, tmp_path / "norms")
    run(optimizer, range(3))
    recorder.close()
    found = tables.read(tmp_path / "norms")
    assert (found["l1"].tolist(), found["l2"].tolist()) == ([1, 2, 3], [10, 20, 30])


def test_gradients_computed_in_a_closure(tmp_path: Path) -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], lr=0.0)
    recorder = NormRecorder(optimizer, tmp_path / "norms")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    recorder.close()
    found = tables.read(tmp_path / "norms")
    assert (found["l1"][0], found["l2"][0]) == (7, 5)


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("saved", [3, 4, 6])
def test_a_resumed_run_has_every_step_once(tmp_path: Path, every: int, saved: int) -> None:
    path = tmp_path / "norms"
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    recorder = NormRecorder(optimizer, path, every)
    run(optimizer, range(saved))
    checkpoint = pickle.loads(pickle.dumps(recorder.state_dict()))
    run(optimizer, range(saved, saved + 5))
    if saved == 6:
        recorder.flush()  # so much that the checkpoint does not know

    resumed = torch.optim.SGD(parameters(), lr=0.5)
    again = NormRecorder(resumed, path, every)
    again.load_state_dict(checkpoint)
    assert_log(path, saved)
    run(resumed, range(saved, 12))
    again.close()
    assert_log(path, 12)


def test_another_run_does_not_write_over_a_log(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    recorder = NormRecorder(optimizer, tmp_path / "norms")
    run(optimizer, range(3))
    recorder.close()
    fresh = torch.optim.SGD(parameters(), lr=0.5)
    NormRecorder(fresh, tmp_path / "norms")
    with pytest.raises(FileExistsError, match=r"norms holds the norms of 3 steps: load the recorder's state_dict\(\)"):
        run(fresh, range(1))
    assert all(not p.any() for p in fresh.param_groups[0]["params"])
    assert_log(tmp_path / "norms", 3)


def test_a_log_that_lacks_steps_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    recorder = NormRecorder(torch.optim.SGD(parameters(), lr=0.5), tmp_path / "norms")
    with pytest.raises(ValueError, match="norms holds the norms of 0 steps, the recorder had written 7"):
        recorder.load_state_dict({"steps": 7})
    assert recorder.steps == 0


def test_two_recorders_do_not_write_over_each_other(tmp_path: Path) -> None:
    """As two optimizers of one program may have: neither finds steps in the folder at first."""
    first, second = [torch.optim.SGD(parameters(), lr=0.5) for _ in range(2)]
    recorder, _ = NormRecorder(first, tmp_path, every=3), NormRecorder(second, tmp_path, every=3)
    run(second, range(1))
    run(first, range(3))
    with pytest.raises(FileExistsError, match=r"^[^\n]* holds step 1 of another recorder: [^\n]*\.$"):
        run(second, range(5, 9))
    recorder.close()
    assert_log(tmp_path, 3)


@pytest.mark.parametrize("state", [{}, None, 3, {"steps": -1}, {"steps": 2.5}, {"steps": "2"}, {"steps": math.nan}])
def test_what_is_no_state_of_a_recorder_is_refused(tmp_path: Path, state: Any) -> None:
    recorder = NormRecorder(torch.optim.SGD(parameters(), lr=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"^NormRecorder cannot load this: it is no state_dict\(\)[^\n]*\.$"):
        recorder.load_state_dict(state)
    assert recorder.steps == 0


def test_a_path_that_can_hold_no_folder_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "norms"):
        optimizer = torch.optim.SGD(parameters(), lr=0.5)
        NormRecorder(optimizer, path)
        with pytest.raises(OSError, match=r"^NormRecorder: [^\n]* cannot be a folder [^\n]*\.$"):
            run(optimizer, range(1))
        assert all(not p.any() for p in optimizer.param_groups[0]["params"])


def test_what_is_no_optimizer_or_path_or_log_is_one_sentence(tmp_path: Path) -> None:
    optimizer: Any = torch.optim.SGD(parameters(), lr=0.5)
    for given, path in ((3, tmp_path), (optimizer, None)):
        with pytest.raises(TypeError, match=r"^NormRecorder[^\n]*\.$"):
            NormRecorder(given, path)
    (tmp_path / "000000000001.parquet").write_text("no")
    NormRecorder(optimizer, tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]*000000000001.parquet is not Parquet of one kind[^\n]*\.$"):
        run(optimizer, range(1))


@pytest.mark.parametrize("labels", [["a"], ["b"], ["a", "b"]])
@pytest.mark.parametrize("shared", [False, True])
def test_numbers_of_some_labels_are_not_those_of_the_model(tmp_path: Path, labels: list[str], shared: bool) -> None:
    """Each of two recorders in the optimizer has its own sums; one that serves both labels has all."""
    params, one = parameters(), Norms()
    groups = [{"params": [p], "label": label} for p, label in zip(params, "ab", strict=True)]
    chains = {label: [one if shared else Norms()] if label in labels else [] for label in "ab"}
    optimizer = untuned.compose(groups, Gradient(), Fixed(0.5), gradient=chains)
    recorder = NormRecorder(optimizer, tmp_path)
    run(optimizer, range(3))
    recorder.close()
    assert_log(tmp_path, 3)


def test_norms_of_an_optimizer_that_takes_out_the_scale_itself(tmp_path: Path) -> None:
    """torch's fused ones do, so that nobody has unscaled the gradients when the step begins."""
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.5, fused=True)
    recorder = NormRecorder(optimizer, tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for k in range(5):
        optimizer.zero_grad()
        loss = sum((p * g).sum() for p, g in zip(params, gradients(k), strict=True))
        scaler.scale(loss).backward()
        if k == 3:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    recorder.close()
    assert scaler.get_scale() == 16.0
    assert_log(tmp_path, 5)


def test_complex_gradients_count_by_their_absolute_values(tmp_path: Path) -> None:
    p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([p], lr=0.5)
    recorder = NormRecorder(optimizer, tmp_path)
    p.grad = torch.full_like(p, 3 + 4j)
    optimizer.step()
    recorder.close()
    found = tables.read(tmp_path)
    assert (found["l1"][0], found["l2"][0]) == pytest.approx((10.0, 50**0.5))


def test_a_full_disk_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    recorder = NormRecorder(optimizer, tmp_path, every=2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run(optimizer, range(3))
    with monkeypatch.context() as patched:
        patched.setattr(tables, "write", full)
        with pytest.raises(OSError, match="No space left"):
            run(optimizer, range(3, 4))
    run(optimizer, range(4, 7))
    recorder.close()
    assert_log(tmp_path, 7)


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import torch
from pathlib import Path
import test_norm_log
from untuned.schedules import NormRecorder, tables
optimizer = torch.optim.SGD(test_norm_log.parameters(), lr=0.5)
recorder = NormRecorder(optimizer, {path!r}, every=4)
written, in_half = tables.replace, {in_half}
def replace(path, write):
    if in_half and path.stem.endswith("9"):  # the third file
        path.with_name(".half").write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
    written(path, write)
tables.replace = replace
test_norm_log.run(optimizer, range(11))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.parametrize("in_half", [False, True])
def test_a_killed_run_keeps_its_whole_chunks(tmp_path: Path, in_half: bool) -> None:
    path = tmp_path / "norms"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path), in_half=in_half)
    if in_half:
        code = code.replace("range(11)", "range(13)")
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert_log(path, 8)
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    recorder = NormRecorder(optimizer, path, every=4)
    recorder.load_state_dict({"steps": 6})  # the last checkpoint
    run(optimizer, range(6, 10))
    recorder.close()
    assert_log(path, 10)


def test_without_pyarrow_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r'^Parquet files need pyarrow; run: pip install "untuned\[study\]"'):
        NormRecorder(torch.optim.SGD(parameters(), lr=0.5), tmp_path)


@pytest.mark.parametrize("every", [0, 2.0, True])
def test_a_wrong_period_is_refused(tmp_path: Path, every: Any) -> None:
    with pytest.raises(ValueError, match="NormRecorder: every must be a whole number of at least 1"):
        NormRecorder(torch.optim.SGD(parameters(), lr=0.5), tmp_path, every)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_files_give_back_what_was_written(tmp_path: Path, name: str) -> None:
    columns = {"step": [1, 2, 3], "l2": [0.1, 1 / 3, 1e-300]}
    tables.write(tmp_path / name, columns)
    assert {key: values.tolist() for key, values in tables.read(tmp_path / name).items()} == columns
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("step,l2\n1,2\n3,4\n", "its steps must be 1, 2, 3, ...; row 2 has step 3."),
        ("step,l2\n1,2\n1,2\n", "row 2 has step 1."),
        ("step,l2\n1,two\n", "is not a table of numbers below a line of names"),
        ("step,l2\n1\n", "is not a table of numbers below a line of names"),
        ("step,grad\n1,2\n", "has no column 'l2'; it has step, grad."),
        ("", "has no column 'l2'; it has none."),
        ("step,l2\n1,2\n", "refine: needs the gradient norms of at least two steps, one number a step, not 1."),
        ("step,l2\n1,2\n2,0\n", "refine: a norm must be positive and finite; that of step 2 is 0.0."),
        ("step,l2,l2\n1,2,3\n", "has two columns of one name; it has step, l2, l2."),
        ("\n\n", "has no column 'l2'; it has none."),
        ("step,l2\n1,1\n2,1e300\n3,1e300\n4,1e300\n5,1e-300\n6,1e300\n", "from 1e-300 to 1e+300 are too far apart"),
        ("step,multiplier\n1,0\n", "holds no schedule: multipliers are >= 0, and one is positive."),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    with pytest.raises(ValueError, match=r"^[^\n]*\.$") as caught:
        Refined(optimizer, path)
    assert sentence in str(caught.value)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_files_of_spreadsheets_and_folders_with_a_dot(tmp_path: Path) -> None:
    wanted = {"step": [1.0, 2.0], "l2": [3.0, 4.0]}
    (tmp_path / "LOG.CSV").write_bytes(b"\xef\xbb\xbfstep,l2\r\n1,3\r\n\r\n2,4\r\n")  # a mark of UTF-8, an empty line
    (tmp_path / "run.csv").mkdir()
    tables.write(tmp_path / "run.csv" / "1.parquet", wanted)
    for name in ("LOG.CSV", "run.csv"):
        assert {key: values.tolist() for key, values in tables.read(tmp_path / name).items()} == wanted


def test_a_schedule_read_where_it_is_zero_is_refused(tmp_path: Path) -> None:
    tables.write(tmp_path / "late.csv", {"multiplier": [0.0, 1.0, 0.0, 0.0]})
    optimizer = torch.optim.SGD(parameters(), lr=0.5)
    with pytest.raises(ValueError, match=r"^refine: the schedule is zero at each of the 2 steps[^\n]*\.$"):
        Refined(optimizer, tmp_path / "late.csv", steps=2)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_file_that_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"log.csv is not a table of numbers"):
        tables.read(tmp_path / "log.csv")
    for column in ({"l2": ["a"]}, {"l2": [1.0], "l1": [2.0]}):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        tables.write(tmp_path / "mixed" / f"{len(column)}.parquet", column)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"^[^\n]*mixed is not Parquet of one kind[^\n]*\.$"):
            tables.read(tmp_path / "mixed")
    with pytest.raises(FileNotFoundError, match="missing does not exist: it should be a log"):
        tables.read(tmp_path / "missing")
    (tmp_path / "log.parquet").write_text("no")
    with pytest.raises(ValueError, match="is not Parquet of one kind"):
        tables.read(tmp_path / "log.parquet")


# ---------------------------------------------------------------- the scheduler


@pytest.mark.parametrize(
    ("name", "power"),
    [("sgd", 2), ("adam", 1), ("prodigy", 1), ("momo", 2), ("schedule_free_adamw", 1), ("dadapt_adagrad", 1)],
)
def test_the_power_is_that_of_the_direction(name: str, power: int) -> None:
    assert power_for(untuned.create(net(), name)) == power


def test_the_power_of_torchs_optimizers() -> None:
    params = parameters()
    assert power_for(torch.optim.SGD(params)) == 2
    assert {power_for(kind(params)) for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)} == {1}
    with pytest.raises(ValueError, match="say power=1 if Rprop divides by a diagonal"):
        power_for(torch.optim.Rprop(params))
    assert power_for(untuned.compose([nn.Parameter(torch.ones(2, 2))], direction=Muon())) == 2
    assert power_for(untuned.wrappers.Extrapolated(torch.optim.Adam(params), 0.1)) == 1


@pytest.mark.parametrize(("kind", "norm", "power"), [(untuned.SGD, "l2", 2), (untuned.Adam, "l1", 1)])
@pytest.mark.parametrize("steps", [None, 5])
def test_refined_reads_a_log(tmp_path: Path, kind: Any, norm: str, power: int, steps: int | None) -> None:
    first = kind(parameters(), lr=0.5)
    recorder = NormRecorder(first, tmp_path / "norms")
    run(first, range(10))
    recorder.close()
    wanted = refine(expected(10)[norm], power, steps=steps)
    tables.write(tmp_path / "schedule.csv", {"step": np.arange(len(wanted)) + 1, "multiplier": wanted})
    for source in (tmp_path / "norms", str(tmp_path / "schedule.csv"), expected(10)[norm]):
        optimizer = kind(parameters(), lr=2.0)
        schedule = Refined(optimizer, source, steps)
        used = []
        for k in range(steps or 10):
            used.append(optimizer.param_groups[0]["lr"] / 2)
            run(optimizer, range(k, k + 1))
            schedule.step()
        assert used == pytest.approx(wanted.tolist(), rel=1e-12)
        assert optimizer.param_groups[0]["lr"] == 0
        with pytest.raises(ValueError, match=rf"^Refined: the schedule has {steps or 10} steps and ends here: "):
            schedule.step()


def test_a_refined_run_resumes_bitwise() -> None:
    norms = np.linspace(3, 1, 6)

    def start() -> tuple[nn.Module, untuned.Optimizer, Refined]:
        model = net()
        optimizer = untuned.Adam(model.parameters(), lr=0.1)
        return model, optimizer, Refined(optimizer, norms)

    def go_on(model: nn.Module, optimizer: untuned.Optimizer, schedule: Refined, steps: range) -> None:
        for k in steps:
            train(model, optimizer, range(k, k + 1))
            schedule.step()

    model, optimizer, schedule = start()
    go_on(model, optimizer, schedule, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    pickled = pickle.dumps(schedule)
    go_on(model, optimizer, schedule, range(3, 6))
    other, resumed, again = start()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    go_on(other, resumed, again, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert pickle.loads(pickled).get_last_lr() == [0.1 * refine(norms, 1)[3]]
