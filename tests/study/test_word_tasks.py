"""Numbers of single word tasks: sizes, co-occurrences, padding, what is seen and what is trained, what Adam reaches."""

import math

import numpy as np
import pytest
import torch

from untuned.study import data, tasks
from untuned.study.tasks import glove, words

pytestmark = pytest.mark.usefixtures("fetched")


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
    x = np.array([counts[pair] for pair in held_out])
    assert task.chance == pytest.approx(np.mean(np.minimum(1, x / 10) ** 0.75 * np.log(x) ** 2), rel=1e-5)


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
