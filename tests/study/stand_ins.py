"""Small sets in the place of those that are fetched, so that their tasks load without the network."""

from pathlib import Path

import numpy as np

from untuned.study import data


def write(folder: Path) -> None:
    """The sets of all tasks whose data are fetched, for `UNTUNED_DATA`."""
    arrays = data.load("fashion-slice")
    np.savez(folder / "mnist.npz", **{key: array[: 300 if "train" in key else 100] for key, array in arrays.items()})
    np.savez(folder / "cifar-10.npz", **cifar_like())
    np.savez(folder / "ptb.npz", **ptb_like())
    np.savez(folder / "minilm.npz", **minilm_like())


def cifar_like():
    """300 + 100 random images; the first is of one colour."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 300), ("test", 100)):
        arrays[f"x_{split}"] = random.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = random.integers(10, size=count, dtype=np.uint8)
    arrays["x_train"][0] = [255, 0, 51]
    return arrays


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
