"""The contract of every built-in task, what Adam reaches on some, and tasks of a user's own."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from untuned.study import data, tasks
from untuned.study.tasks import glove, words
from untuned.study.tasks.classification import Classification
from untuned.study.tasks.in_memory import InMemory

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"
TABLES = [name for name in tasks.names() if name.startswith("logreg-")]


@pytest.fixture(scope="module", autouse=True)
def fetched_stand_ins(tmp_path_factory):
    """Small sets in the place of those that are fetched, so that their tasks load without the network."""
    folder = tmp_path_factory.mktemp("cache")
    arrays = data.load("fashion-slice")
    small = {key: array[: 300 if "train" in key else 100] for key, array in arrays.items()}
    np.savez(folder / "mnist.npz", **small)
    np.savez(folder / "ptb.npz", **ptb_like())
    np.savez(folder / "minilm.npz", **minilm_like())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNTUNED_DATA", str(folder))
        yield


def ptb_like():
    """Random text of 2,500 different words, "<unk>" the third, as `data.load("ptb")` gives it."""
    rng = np.random.default_rng(0)
    names = np.array(["the", "<eos>", "<unk>", *(f"word{n}" for n in range(2497))])
    texts = {split: rng.integers(0, 2500, n).astype(np.uint16) for split, n in (("train", 3_000), ("valid", 700))}
    return {**texts, "words": names}


def minilm_like(width=32, layers=2):
    """Random weights under the names of `data.load("minilm")`: one head, two layers."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float32)

    arrays = {
        "tokens.weight": normal(len(data.load("help-modules")["vocabulary"]), width),
        "positions": normal(16, width),
        "norm.weight": 1 + normal(width),
        "norm.bias": normal(width),
    }
    for layer in range(layers):
        shapes = {
            "self_attn.in_proj_weight": (3 * width, width), "self_attn.in_proj_bias": (3 * width,),
            "self_attn.out_proj.weight": (width, width), "self_attn.out_proj.bias": (width,),
            "linear1.weight": (4 * width, width), "linear1.bias": (4 * width,),
            "linear2.weight": (width, 4 * width), "linear2.bias": (width,),
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
        }  # fmt: skip
        arrays |= {f"layers.{layer}.{name}": normal(*shape) for name, shape in shapes.items()}
    return arrays


WORD_TASKS = ["help-translation", "sotu-glove", "adult-embeddings", "ptb-lstm", "minilm-lora", "minilm-full"]


@pytest.fixture(params=["logreg-iris", "fashion-mlp", "fashion-cnn", "sotu-char", *WORD_TASKS, "mnist-mlp"])
def task(request):
    return tasks.load(request.param)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(task, lr, epochs, seed=0):
    """A plain loop with torch's Adam: the metrics at the end."""
    model = task.model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        for batch in task.batches(seed, epoch):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    return task.evaluate(model)


def test_names():
    assert len(TABLES) == 12
    assert set(tasks.names()) - set(TABLES) == {"fashion-mlp", "fashion-cnn", "sotu-char", "mnist-mlp", *WORD_TASKS}


@pytest.mark.parametrize("name", tasks.names())
def test_untrained_model_scores_about_chance(name):
    task = tasks.load(name)
    assert task.name == name
    model = task.model(0)
    found = task.evaluate(model)
    assert set(found) == {"val_loss", task.metric}
    classes = sum(1 for _ in model.parameters()) and list(model.parameters())[-1].numel()
    expected = {"adult-embeddings": math.log(2), "sotu-glove": task.chance}.get(name, math.log(classes))
    assert found["val_loss"] == pytest.approx(expected, rel=0.05)
    assert task.loss(model, next(iter(task.batches(0, 0)))).item() == pytest.approx(expected, rel=0.15)
    if task.maximize:
        assert 0 < found[task.metric] <= task.chance + 0.12
    elif name == "adult-embeddings":  # whoever knows the share of high incomes has learned nothing either
        assert task.chance < found[task.metric]
    else:
        assert found[task.metric] == pytest.approx(task.chance, rel=0.05)


def test_chance():
    expected = {"logreg-iris": 1 / 3, "logreg-connect-4": 44473 / 67557, "fashion-mlp": 0.1, "sotu-char": math.log2(51)}
    expected |= {"help-translation": math.log(2004), "ptb-lstm": math.log(2000), "minilm-lora": 1 / 6}
    share, val_share = (data.load("adult-slice")[f"y_{split}"].mean() for split in ("train", "val"))
    expected["adult-embeddings"] = -val_share * math.log(share) - (1 - val_share) * math.log(1 - share)
    assert {name: tasks.load(name).chance for name in expected} == pytest.approx(expected)


def test_batches_follow_seed_and_epoch(task):
    def epoch_of(*key):
        return [batch if isinstance(batch, torch.Tensor) else batch[0] for batch in task.batches(*key)]

    first = epoch_of(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch_of(0, 0), strict=True))
    others = [epoch_of(0, 1)[0], epoch_of(1, 0)[0], epoch_of(1, 1)[0]]
    for i, a in enumerate([first[0], *others]):
        assert all(not torch.equal(a, b) for b in others[i:])
    assert {len(batch) for batch in first[:-1]} == {task.batch_size}
    assert 0 < len(first[-1]) <= task.batch_size


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_visits_every_sample_once(task, epoch):
    if isinstance(task, Classification):
        seen = [torch.cat([x.flatten(1), y[:, None]], 1) for x, y in task.batches(5, epoch)]
        everything = torch.cat([task.x.flatten(1), task.y[:, None]], 1)
    elif isinstance(task, InMemory):

        def joined(tensors):
            return torch.cat([tensor.double().reshape(len(tensor), -1) for tensor in tensors], 1)

        seen, everything = [joined(batch) for batch in task.batches(5, epoch)], joined(task.train)
        numbers = torch.cat(list(task.ids(5, epoch)))
        assert torch.equal(torch.cat(seen), everything[numbers])
        assert len(numbers) == task.samples
    else:
        seen, everything = list(task.batches(5, epoch)), task.train

    def in_order(rows):
        return rows.numpy()[np.lexsort(rows.numpy().T)]

    np.testing.assert_array_equal(in_order(torch.cat(seen)), in_order(everything))


def test_models_follow_the_seed_and_leave_the_random_state_alone(task):
    before = torch.get_rng_state()
    a, b, c = flat(task.model(3)), flat(task.model(3)), flat(task.model(4))
    list(task.batches(0, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    # Logistic regression starts at zero; the MNIST study keeps one initialisation for all seeds.
    assert torch.equal(a, c) == (task.name in {"logreg-iris", "mnist-mlp"})
    assert bool(a.any()) == (task.name != "logreg-iris")


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_changes_nothing(task, training):
    model = task.model(0).train(training)
    weights, random_state = flat(model).clone(), torch.get_rng_state()
    first = task.evaluate(model)
    assert first == task.evaluate(model)
    assert all(isinstance(value, float) for value in first.values())
    assert model.training is training
    assert torch.equal(flat(model), weights)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_evaluation_uses_evaluation_mode_and_restores_after_an_error():
    model = torch.nn.Dropout()
    with tasks.evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    with pytest.raises(KeyError), tasks.evaluating(model):
        raise KeyError
    assert model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", TABLES)
def test_features_fill_minus_one_to_one(name):
    task = tasks.load(name)
    raw = data.load(name.removeprefix("logreg-"))["x"]
    constant = raw.min(0) == raw.max(0)
    low, high = task.x.min(0).values.numpy(), task.x.max(0).values.numpy()
    np.testing.assert_allclose(low[~constant], -1, atol=1e-6)
    np.testing.assert_allclose(high[~constant], 1, atol=1e-6)
    assert not task.x[:, constant].any()
    assert constant.sum() == (name == "logreg-segment")


def test_scaling_is_linear_in_each_column():
    task, raw = tasks.load("logreg-iris"), data.load("iris")["x"]
    assert task.x[0, 0].item() == pytest.approx(2 * (5.1 - 4.3) / (7.9 - 4.3) - 1, abs=1e-6)
    assert np.corrcoef(task.x[:, 2].numpy(), raw[:, 2])[0, 1] == pytest.approx(1)


def test_full_loss_is_the_mean_of_the_batch_losses():
    task = tasks.load("logreg-vehicle")
    model = torch.nn.Linear(18, 4)
    total = sum(task.loss(model, batch).item() * len(batch[1]) for batch in task.batches(0, 0))
    assert task.evaluate(model)["val_loss"] == pytest.approx(total / 846, rel=1e-6)


def test_images_are_standardised():
    task = tasks.load("fashion-mlp")
    assert task.x.dtype == torch.float32
    # The constants are those of all 60,000 images; 2,000 balanced ones come close.
    assert abs(task.x.mean().item()) < 0.02
    assert abs(task.x.std().item() - 1) < 0.02
    stand_in = tasks.load("mnist-mlp")
    first = data.load("mnist")["x_train"][0].astype(np.float64)
    np.testing.assert_allclose(stand_in.x[0].numpy(), (first / 255 - 0.1307) / 0.3081, rtol=1e-5)


def test_mnist_has_to_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"mnist is not on this machine .*: run `untuned data fetch mnist` \(11"
    ):
        tasks.load("mnist-mlp")


def test_text_windows_predict_every_character_once_and_training_ends_before_validation():
    task = tasks.load("sotu-char")
    alphabet = np.unique(data.load("sotu")["text"])
    text = data.load("sotu")["text"].tobytes().decode()

    def characters(codes):
        return alphabet[codes.numpy()].tobytes().decode()

    targets = characters(task.train[:, 1:].flatten())
    assert text.startswith(targets, 1)
    held_out = characters(task.val[:, 1:].flatten())
    start = text.index(held_out)
    assert start > len(targets)
    assert len(text) - start < 0.05 * len(text) + 1
    assert len(targets) + len(held_out) > len(text) - 200


def test_transformer_sees_no_future_but_all_the_past():
    model = tasks.load("sotu-char").model(0)
    codes = torch.arange(64)[None] % 51
    codes_changed = codes.clone()
    codes_changed[0, 30] = 50
    difference = (model(codes) - model(codes_changed)).abs().amax(2)[0]
    assert difference[:30].max() == 0
    assert difference[30:].min() > 0
    assert 100_000 < sum(parameter.numel() for parameter in model.parameters()) < 120_000


# --- Words.


def parameters(task):
    """How many numbers of the model are trained, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in task.model(0).parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def test_sizes_of_the_word_models():
    """Counted by hand: tables, attention 4 d^2 + 4 d, feed-forward 8 d^2 + 5 d, norms 2 d, outputs."""
    d, v = 64, 2004
    attention, feed_forward, norm = 4 * d * d + 4 * d, 8 * d * d + 5 * d, 2 * d
    blocks = 2 * (attention + feed_forward + 2 * norm) + 2 * (2 * attention + feed_forward + 3 * norm)
    translation = 2 * v * d + 18 * d + blocks + 2 * norm + d * v + v
    assert parameters(tasks.load("help-translation")) == (translation, translation)
    lstm = 2000 * 96 + 4 * 96 * (96 + 96) + 2 * 4 * 96 + 96 * 2000 + 2000
    assert parameters(tasks.load("ptb-lstm")) == (lstm, lstm)
    assert parameters(tasks.load("sotu-glove")) == (2 * 1500 * 51, 2 * 1500 * 51)
    embeddings = 8 * (9 + 16 + 7 + 15 + 6 + 5 + 2 + 42)
    adult = embeddings + 70 * 128 + 128 + 128 * 64 + 64 + 64 + 1
    assert parameters(tasks.load("adult-embeddings")) == (adult, adult)


def test_cooccurrences_by_hand(monkeypatch):
    monkeypatch.setattr(glove, "WORDS", 3)
    monkeypatch.setattr(glove, "WINDOW", 2)
    # The commonest: a (4), b (3), c (2); x counts as a place only, and no pair crosses a line.
    counts = glove.cooccurrences("a b a x c\nb c, a. a b\n")
    a_b = 1 + 1 + 1 / 2 + 1 + 1 / 2
    a_a, a_c, b_c = 2 * 1 / 2 + 2 * 1, 1 / 2 + 1 + 1 / 2, 1
    np.testing.assert_allclose(counts, [[a_a, a_b, a_c], [a_b, 0, b_c], [a_c, b_c, 0]])


def test_glove_loss_is_the_published_formula():
    task = tasks.load("sotu-glove")
    model = task.model(0)
    with torch.no_grad():
        for table in model.parameters():
            table.normal_(generator=torch.Generator().manual_seed(1))
    counts = glove.cooccurrences(data.load("sotu")["text"].tobytes().decode())
    batch = next(iter(task.batches(0, 0)))
    words_, contexts = model.words.weight.detach().double().numpy(), model.contexts.weight.detach().double().numpy()
    total = 0.0
    for i, j in zip(batch[0].tolist(), batch[1].tolist(), strict=True):
        x, (*w, b), (*u, c) = counts[i, j], words_[i], contexts[j]
        weight = (x / 10) ** 0.75 if x < 10 else 1
        total += weight * (np.dot(w, u) + b + c - math.log(x)) ** 2
    assert task.loss(model, batch).item() == pytest.approx(total / len(batch[0]), rel=1e-5)


def test_glove_holds_out_pairs_in_both_orders():
    task = tasks.load("sotu-glove")
    counts = glove.cooccurrences(data.load("sotu")["text"].tobytes().decode())
    assert (counts == counts.T).all()
    held_out, trained = ({tuple(pair) for pair in torch.stack(part[:2], 1).tolist()} for part in (task.val, task.train))
    assert len(held_out) + len(trained) == (counts > 0).sum() == 302_274
    assert not held_out & trained
    assert {(j, i) for i, j in held_out} == held_out
    assert 0.09 < len(held_out) / 302_274 < 0.11


def test_adult_numbers_are_standardised_and_gains_on_a_log_scale():
    task, raw = tasks.load("adult-embeddings"), data.load("adult-slice")
    _, numbers, y = task.train
    assert numbers.mean(0).abs().max() < 1e-5
    np.testing.assert_allclose(numbers.std(0, correction=0), 1, rtol=1e-5)
    assert np.corrcoef(numbers[:, 3], np.log1p(raw["numbers_train"][:, 3]))[0, 1] == pytest.approx(1)
    assert y.mean().item() == pytest.approx(raw["y_train"].mean())


def translated(model, german, english):
    """Logits at every place (n, k, words)."""
    return model(german, english, torch.ones_like(english, dtype=torch.bool)).unflatten(0, english.shape)


def test_translation_sees_no_later_word_of_the_target_and_no_padding_of_the_source():
    task = tasks.load("help-translation")
    model = task.model(0)
    german, english = (side[:1] for side in task.train)
    logits, length = translated(model, german, english), int((german != 0).sum())
    changed = english.clone()
    changed[0, 5] = 1000
    difference = (logits - translated(model, german, changed)).abs().amax(2)[0]
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0
    assert 0 < length < german.shape[1]
    torch.testing.assert_close(translated(model, german[:, :length], english), logits)
    for place in range(length):
        other = german.clone()
        other[0, place] = 1000
        assert (translated(model, other, english) - logits).abs().amax(2).min() > 0


def test_translation_loss_leaves_out_the_padding():
    task = tasks.load("help-translation")
    model = task.model(0)
    german, english = (side[:3] for side in task.train)
    logs = translated(model, german, english).log_softmax(2)
    losses = [
        -logs[n, k - 1, word].item()
        for n, row in enumerate(english.tolist())
        for k, word in enumerate(row)
        if k and word
    ]
    assert len(losses) < 3 * 17
    assert task.loss(model, (german, english)).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_ptb_windows_keep_the_commonest_words(monkeypatch):
    raw = data.load("ptb")
    task = tasks.load("ptb-lstm")
    (windows,) = task.train
    assert windows.shape == ((3_000 - 1) // 32, 33)
    expected = np.where(raw["train"] < 2000, raw["train"], 2)
    np.testing.assert_array_equal(windows[:, :-1].flatten(), expected[: windows.shape[0] * 32])
    np.testing.assert_array_equal(windows[:-1, -1], windows[1:, 0])
    monkeypatch.setattr(words, "TRAIN_WINDOWS", 10)
    assert torch.equal(tasks.load("ptb-lstm").train[0], windows[:10])


def test_lstm_sees_no_future_but_all_the_past():
    model = tasks.load("ptb-lstm").model(0)
    codes = torch.arange(32)[None]
    changed = codes.clone()
    changed[0, 15] = 1000
    difference = (model(codes) - model(changed)).abs().amax(2)[0]
    assert difference[:15].max() == 0
    assert difference[15:].min() > 0


def test_lora_starts_at_the_pretrained_function_and_trains_its_own_parameters_only():
    lora, full = tasks.load("minilm-lora"), tasks.load("minilm-full")
    a, b = lora.model(0), full.model(0)
    assert torch.equal(a(lora.x_val), b(full.x_val))
    width, layers, classes = 32, 2, 6
    head = width * classes + classes
    frozen = b.encoder.tokens.weight.numel() + 16 * width + 2 * width
    block = 12 * width**2 + 13 * width
    assert parameters(full) == (layers * block + head, layers * block + head + frozen)
    added = layers * 2 * 2 * 8 * width
    assert parameters(lora) == (added + head, added + head + layers * block + frozen)

    before = {name: value.clone() for name, value in a.state_dict().items()}
    optimizer = torch.optim.Adam(a.parameters(), 1e-2)
    for batch in list(lora.batches(0, 0))[:2]:
        optimizer.zero_grad()
        lora.loss(a, batch).backward()
        optimizer.step()
    moved = {name for name, value in a.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("logits.") or name.endswith((".0.a", ".0.b"))}
    attention, pretrained = a.encoder.layers[0].self_attn, b.encoder.layers[0].self_attn
    change = attention.in_proj_weight - pretrained.in_proj_weight
    rank = [torch.linalg.matrix_rank(part, atol=1e-5).item() for part in change.detach().split(width)]
    assert rank == [8, 0, 8]
    low_rank = attention.parametrizations.in_proj_weight[0]
    torch.testing.assert_close(change[:width], 2 * low_rank.b[0] @ low_rank.a[0], atol=1e-6, rtol=0)


def test_minilm_does_not_see_the_padding():
    task = tasks.load("minilm-full")
    model = task.model(0)
    row = int(((task.x != 0).sum(1) == 9).nonzero()[0])
    torch.testing.assert_close(model(task.x[row : row + 1, :9]), model(task.x[row : row + 1]))


@pytest.mark.parametrize(("name", "words_"), [("ptb-lstm", "ptb"), ("minilm-lora", "minilm")])
def test_words_and_weights_have_to_be_fetched(name, words_, monkeypatch, tmp_path):
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"run `untuned data fetch {words_}`"):
        tasks.load(name)


@pytest.mark.parametrize(
    ("name", "lr", "share", "reached"),
    [("sotu-glove", 0.02, 0.5, 0.13), ("adult-embeddings", 3e-3, 0.5, 0.36), ("help-translation", 3e-3, 0.1, 5.2)],
)
def test_adam_learns_words(name, lr, share, reached):
    task = tasks.load(name)
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    stream = [batch for epoch in range(task.epochs) for batch in task.batches(0, epoch)]
    for batch in stream[: round(share * len(stream))]:
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    assert task.evaluate(model)["val_loss"] < reached


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "reached"),
    [
        ("logreg-iris", 0.1, 60, 0.97),
        ("logreg-wine", 0.1, 30, 0.995),
        ("logreg-letter", 0.03, 1, 0.70),
        ("fashion-mlp", 1e-3, 15, 0.80),
        ("fashion-cnn", 3e-3, 3, 0.70),
    ],
)
def test_adam_reaches(name, lr, epochs, reached):
    task = tasks.load(name)
    assert train(task, lr, epochs)[task.metric] >= reached


def test_adam_learns_text(monkeypatch):
    task = tasks.load("sotu-char")
    monkeypatch.setattr(task, "train", task.train[: 80 * task.batch_size])
    assert train(task, 3e-3, 1)["val_bits_per_char"] < 3.7


# --- A user's own task.


def test_example_of_the_documentation_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_tasks.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = tasks.load("my_tasks:VehicleMLP")
    assert task.evaluate(task.model(0))["val_accuracy"] < 0.5
    assert train(task, 1e-2, task.epochs)["val_accuracy"] > 0.75


def test_documentation_lists_the_tasks_as_they_are():
    rows = re.findall(r"^\| `(.+?)` \| ([\d,]+) \| ([\d,]+) \| (\d+) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert [name for name, *_ in rows] == tasks.names()
    for name, n, d, epochs, licence in rows:
        task = tasks.load(name)
        assert int(epochs) == task.epochs, name
        n, d = int(n.replace(",", "")), int(d.replace(",", ""))
        if name in FETCHED:
            assert (n, d, licence) == FETCHED[name], name
            continue  # a stand-in here
        if isinstance(task, Classification):
            assert (n, d) == (len(task.y), task.x[0].numel()), name
        elif isinstance(task, InMemory):
            assert n == task.samples, name
            assert d == (2 if name == "sotu-glove" else data.manifest()[SOURCES[name]]["d"]), name
        else:
            assert n == len(data.load("sotu")["text"]) * 19 // 20 + 1, name
        stated = data.manifest()[SOURCES.get(name) or name.removeprefix("logreg-")]["licence"]
        assert all(part in stated for part in licence.split(", ")), name


FETCHED = {
    "mnist-mlp": (60_000, 784, "none stated"),
    "ptb-lstm": (words.TRAIN_WINDOWS * words.CONTEXT, 1, "none stated"),
}
SOURCES = {
    "fashion-mlp": "fashion-slice", "fashion-cnn": "fashion-slice", "sotu-char": "sotu", "sotu-glove": "sotu",
    "adult-embeddings": "adult-slice", "help-translation": "help-pairs", "minilm-lora": "help-modules",
    "minilm-full": "help-modules",
}  # fmt: skip


COMPLETE = """
from untuned.study.tasks import Task

class Mine(Task):
    name, title, metric, maximize, chance = "mine", "Mine", "val_loss", False, 1
    batch_size, epochs = 1, 1
    model = batches = loss = evaluate = lambda self, *args: None
"""


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "nowhere_{}:Mine", r"no module 'nowhere_.*' here or among the installed packages"),
        ("", "nowhere_{}.inner:Mine", r"no module 'nowhere_"),
        ("", "own_{}:Mine", r"'Mine' in .*own_.*\.py is no subclass of untuned\.study\.tasks\.Task"),
        ("Mine = 3", "own_{}:Mine", "is no subclass"),
        (COMPLETE.replace("loss = evaluate", "evaluate"), "own_{}:Mine", "lacks the methods loss"),
        (COMPLETE + "    def __init__(self, folder): ...", "own_{}:Mine", "without arguments: missing .*'folder'"),
        (COMPLETE.replace("False, 1", '"no", 1'), "own_{}:Mine", "'maximize' must be of type bool, got 'no'"),
        (COMPLETE.replace("name, title", "name, _"), "own_{}:Mine", "'title' must be of type str, got None"),
        (COMPLETE.replace("= 1, 1", '= 1, "ten"'), "own_{}:Mine", "'epochs' must be of type int, got 'ten'"),
    ],
)  # fmt: skip
def test_unusable_task_is_refused_in_words(code, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    unique = abs(hash(tmp_path))
    (tmp_path / f"own_{unique}.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        tasks.load(name.format(unique))


def test_missing_import_of_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_more.py").write_text("import package_that_is_not_there")
    with pytest.raises(ValueError, match=r"'needs_more:Mine'.*'package_that_is_not_there' \(.*needs_more.py, line 1\)"):
        tasks.load("needs_more:Mine")


def test_module_of_the_current_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    (tmp_path / "found_here.py").write_text(COMPLETE)
    assert tasks.load("found_here:Mine").title == "Mine"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"no task 'irys'; there are logreg-dna, .*mnist-mlp, and your own as module:Class"
    ):
        tasks.load("irys")
