"""Write docs/methods/NAME.md for every method, docs/methods/index.md, and the number of methods in README.md.

    python scripts/method_pages.py [--check]

Everything on a page comes from the class and its parts (signature, docstrings, declarations), from the registry, from
docs/methods/study.csv and, where those are silent, from docs/methods/notes.toml. `--check` writes nothing and exits
with 1 if a page is stale.
"""

import dataclasses
import inspect
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import method_study
import torch
from method_study import Sensitivity

import untuned
from untuned.optimizer.options import EngineOptions
from untuned.recipe.plan import plan
from untuned.registry import Method
from untuned.study import tasks
from untuned.study.axes import decades

OUT = Path(__file__).parents[1] / "docs" / "methods"
README = Path(__file__).parents[1] / "README.md"
ROLES = {"direction": "Direction", "step_size": "Step size", "iterate": "Iterate", "decay": "Weight decay"}
ROLES |= {"gradient 1": "Transform of the gradient", "around 1": "Transform of the step"}
REQUIRED = {"samples": 1000}  # options without a default
_WRITTEN = "<!-- Written by scripts/method_pages.py: change the docstrings, the registry or notes.toml instead. -->"


# ---------------------------------------------------------------- what a method is


def options(method: Method) -> dict[str, Any]:
    """The options of the class and their defaults, `REQUIRED` where there is none."""
    parameters = list(inspect.signature(method.optimizer).parameters.values())[1:]
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    return {p.name: REQUIRED[p.name] if p.default is p.empty else p.default for p in named}


def build(method: Method, dtype: torch.dtype = torch.float32, **changes: Any) -> untuned.Optimizer:
    required = {name: value for name, value in options(method).items() if name in REQUIRED}
    weight = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = method.optimizer([weight], **required | changes, execution="reference")
    if len(optimizer.recipe.variants) > 1:  # another direction for matrices
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(4, 2, dtype=dtype))]})
    return optimizer


def parts_of(optimizer: untuned.Optimizer) -> dict[str, Any]:
    """The parts by the titles of their roles, of which a role has several where labels have parts of their own."""
    variants, found = optimizer.recipe.variants, dict[str, Any]()
    for role, part in optimizer.parts.items():
        if all(parts[role] is part for parts in variants.values()):
            found[ROLES[role]] = part
        else:
            found |= {f"{ROLES[role]} of {label}": parts[role] for label, parts in variants.items()}
    return found


@dataclasses.dataclass(frozen=True)
class Slots:
    """Per-parameter state: its keys, and their bytes for one element; and that of the groups with other labels."""

    keys: tuple[str, ...]
    bytes: float
    label: str | None = None
    others: tuple["Slots", ...] = ()

    @classmethod
    def of(cls, optimizer: untuned.Optimizer) -> "Slots":
        optimizer.state_dict()  # makes the slots, as the first step would
        found = []
        for group in sorted(optimizer.param_groups, key=lambda group: group.get("label") or ""):
            [weight] = group["params"]
            slots = {key: value for key, value in optimizer.state[weight].items() if value.dim()}
            size = sum(value.nbytes for value in slots.values()) / weight.numel()
            found.append(cls(tuple(slots), size, group.get("label")))
        return dataclasses.replace(found[0], others=tuple(found[1:]))

    @property
    def all(self) -> tuple["Slots", ...]:
        return self, *self.others


def needs(method: Method, word: str) -> bool:
    return any(word in part.needs for part in build(method).recipe.all_parts)


def sweeps(method: Method) -> int:
    return sum(1 for verbs, _ in plan(build(method).recipe.variants.values()) if verbs)


@dataclasses.dataclass(frozen=True)
class Option:
    name: str
    default: Any
    range: str
    other: Any  # some other value than the default
    slots: Slots  # with that

    @property
    def shown(self) -> str:
        return "required" if self.name in REQUIRED else f"`{self.default!r}`"


@cache
def described(method: Method) -> list[Option]:
    found = []
    for name, default in options(method).items():
        other, optimizer = _with_another(method, name, default)
        found.append(Option(name, default, _range(method, name, default), other, Slots.of(optimizer)))
    return found


def _range(method: Method, name: str, default: Any) -> str:
    """What the refusal of a wrong value says: it knows checks that no declaration shows."""
    wrong = {bool: None, str: "?", tuple: (math.nan,) * len(default if isinstance(default, tuple) else ())}
    try:
        build(method, **{name: wrong.get(type(default), math.nan)})
    except (TypeError, ValueError) as refusal:
        accepted = re.search(r" must be (?:a number in )?(.*?),? not ", str(refusal))
        if accepted:
            return ("None or " if default is None else "") + accepted[1]
    raise ValueError(f"{method.name} does not say what it takes for {name}")


def _with_another(method: Method, name: str, default: Any) -> tuple[Any, untuned.Optimizer]:
    """Some other value of the option, and the optimizer built with it."""
    if isinstance(default, bool):
        values: list[Any] = [not default]
    elif isinstance(default, str):
        values = [word.strip() for word in _range(method, name, default).removeprefix("one of").split(",")]
        values.remove(default)
    elif isinstance(default, tuple):
        values = [tuple(0.9 * value for value in default)]
    else:
        values = [0.5, 1.5, 2]
    for value in values:
        with suppress(TypeError, ValueError):
            return value, build(method, **{name: value})
    raise ValueError(f"{method.name}: none of {values} was accepted for {name}")


# ---------------------------------------------------------------- what the docstrings say


@dataclasses.dataclass(frozen=True)
class Document:
    """A docstring without its doctest: Markdown, and apart from it what differs from the reference implementation."""

    text: str
    differs: str
    example: str

    @classmethod
    def of(cls, thing: Any) -> "Document":
        prose, _, example = (inspect.getdoc(thing) or "").partition(">>>")
        kept, differing = [], []
        for paragraph in prose.strip("\n").split("\n\n"):
            if paragraph.startswith(" "):
                kept.append(paragraph)
                continue
            rest, differs = _apart(" ".join(paragraph.split()))
            kept += [rest] if rest else []
            differing += [differs] if differs else []
        return cls("\n\n".join(kept), " ".join(differing), f">>>{example}".rstrip() if example else "")


def _apart(paragraph: str) -> tuple[str, str]:
    """A paragraph without what the page says elsewhere, and its sentences on what differs from others."""
    sentences = [s for s in re.split(r"(?<=[.)])\s+(?=[A-Z`])", paragraph) if not re.match(r"(Sweeps|Slots): ", s)]
    first = next((i for i, s in enumerate(sentences) if re.match(r"(Differs from|Unlike) ", s)), len(sentences))
    last = next((i for i in range(first, len(sentences)) if re.match(r"(Needs|Any direction) ", sentences[i])), None)
    if first < len(sentences) and " in these " in sentences[first]:
        first = 0  # it speaks of the sentences before it
    differs = sentences[first:last]
    rest = sentences[:first] + (sentences[last:] if last else [])
    return " ".join(rest), " ".join(differs)


def _linked(text: str, parts: dict[str, Any]) -> str:
    """References to parts on this page as links."""
    for title, part in parts.items():
        name = f"`untuned.{type(part).__module__.split('.')[1]}.{part.name}`"
        text = text.replace(name, f"[{name}](#{_anchor(title, part)})")
    return text


def _anchor(title: str, part: Any) -> str:
    return f"{title} {part.name}".lower().replace(" ", "-")


def _paper(paper: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


# ---------------------------------------------------------------- the pages


@cache
def notes() -> dict[str, Any]:
    return tomllib.loads((OUT / "notes.toml").read_text())


def page(method: Method) -> str:
    optimizer, document = build(method), Document.of(method.optimizer)
    parts, note = parts_of(optimizer), notes()["methods"][method.name]
    documents = {title: Document.of(part) for title, part in parts.items()}
    named = [f'"{method.name}"', *(f"{name}={REQUIRED[name]}" for name in options(method) if name in REQUIRED)]
    apart = "" if method.divides_groups else ", which gives biases and norm weights no weight decay"
    sections = [
        _WRITTEN,
        f"# `{method.name}`",
        f"`untuned.{method.optimizer.__name__}`: {method.summary}. {_paper(method.paper)}.",
        _linked(_paper(document.text), parts),
        f"```python\n{_call(method)}\n```",
        f"By name: `untuned.create(model, {', '.join(named)})`{apart}. "
        "The [options of every method](index.md#options-of-every-method) go last.",
        *([f"```python\n{document.example}\n```"] if document.example else []),
        "## Recipe",
        table(("part", "here"), [(t, f"[`{p!r}`](#{_anchor(t, p)})") for t, p in parts.items()]),
        "## Equations",
        "g is the gradient, p or x the parameter, u the direction; inner products and norms run over the whole model "
        "unless a scope says otherwise.",
    ]
    for title, part in parts.items():
        sections += [f"### {title}: {part.name}", _linked(_paper(documents[title].text), parts)]
    sections += ["## Options", _options(method)]
    sections += ["## Cost", _cost(method, optimizer)]
    sections += ["## Schedule", note["schedule"], "## Pitfalls", "\n".join(f"- {text}" for text in note["pitfalls"])]
    stated = [f"- {text}" for text in (note.get("differs"), document.differs) if text]
    for title, part in parts.items():
        differs = documents[title].differs
        if differs and " in nothing" not in differs:  # that would be said of the part alone
            stated.append(f"- {title} `{part.name}`: {differs}")
    sections += ["## What differs from other implementations", _linked("\n".join(stated), parts)]
    sections += ["## A small study", _study(method)]
    return "\n\n".join(sections) + "\n"


def _call(method: Method) -> str:
    given = [
        f"{name}={REQUIRED[name]}" if name in REQUIRED else f"{name}={value!r}"
        for name, value in options(method).items()
    ]
    text = ", ".join(["model.parameters()", *given]).replace("=inf", '=float("inf")')
    folded = textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False)
    return f"optimizer = untuned.{method.optimizer.__name__}(\n    " + "\n    ".join(folded) + "\n)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _options(method: Method) -> str:
    shared, own = notes()["options"], notes()["methods"][method.name].get("options", {})
    rows = [(f"`{o.name}`", o.shown, o.range, own.get(o.name) or shared[o.name]) for o in described(method)]
    return table(("option", "default", "range", "what it does"), rows)


def _cost(method: Method, optimizer: untuned.Optimizer) -> str:
    slots, half = Slots.of(optimizer), Slots.of(build(method, torch.bfloat16))
    reads = [word for word, key in (("the loss", "loss"), ("the sample ids", "sample_ids")) if needs(method, key)]
    modes = "modes" in optimizer.parts["iterate"].gives
    extra = [
        f"; {_bytes(o.slots) if o.slots.keys != slots.keys else f'{o.slots.bytes:g} bytes'} with `{o.name}={o.other!r}`"
        for o in described(method)
        if o.slots != slots
    ]
    rows = [
        ("sweeps over the parameters in a step", str(sweeps(method))),
        ("slots, float32", _bytes(slots) + "".join(extra)),
        ("slots of bfloat16 parameters", _bytes(half)),
        ("numbers", _numbers(optimizer)),
        ("`step` needs", " and ".join(reads) or "nothing but gradients"),
        ("`eval()` before evaluating, `train()` before training on", "needed" if modes else "not needed"),
    ]
    return table(("", "at the default options"), rows)


def _bytes(slots: Slots) -> str:
    found = []
    for one in slots.all:
        keys = ", ".join(f"`{key}`" for key in one.keys)
        of = f"{one.label}: " if one.label else ""
        found.append(of + (f"{keys}: {one.bytes:g} bytes per parameter" if keys else "none"))
    return "; ".join(found)


def _numbers(optimizer: untuned.Optimizer) -> str:
    found: dict[str, list[str]] = {}
    for part in optimizer.recipe.all_parts:
        for n in part.numbers().values():
            scope = "sample" if n.size else "tensor" if part.per_tensor(n) else part.scope
            found.setdefault(scope, []).append(f"`{n.key}`")
    return "; ".join(f"per {scope}: {', '.join(keys)}" for scope, keys in found.items()) or "none"


def _study(method: Method) -> str:
    if method.name not in {row["method"] for row in _rows()}:
        return f"Not run yet: `python scripts/method_study.py {method.name}`."
    mine, reference = _sensitivity(method.name), _sensitivity(method_study.REFERENCE)
    wide = mine.within(0.02)
    sentences = [
        f"![Validation accuracy of {method.name} against lr, beside adamw]({method.name}.png)\n\n{_task().title}, "
        f"{method_study.EPOCHS} epochs at a constant lr, median of {mine.finals.shape[1]} seeds: "
        f"{_percent(mine.medians[mine.best])} at its best lr {mine.lrs[mine.best]:g}, "
        f"{_percent(mine.medians[mine.default])} at the default {mine.lrs[mine.default]:g}",
        f"; adamw reaches {_percent(reference.medians.max())} at its best. "
        if mine.method != reference.method
        else ". ",
        f"Within 2 points of its own best over {decades(wide)} decades of lr. " if wide else "It learned nothing. ",
        f"{mine.diverged.sum():g} of {mine.finals.size} runs diverged. ",
        "Numbers: [study.csv](study.csv); what they can and cannot say: [index](index.md#the-study).",
    ]
    return "".join(sentences)


@cache
def _task() -> tasks.Task:
    return tasks.load(method_study.TASK)


@cache
def _rows() -> list[method_study.Row]:
    return method_study.read()


def _standings() -> list[tuple[str, ...]]:
    return method_study.summary(method_study.standings(_rows()))


@cache
def _sensitivity(name: str) -> Sensitivity:
    return Sensitivity.of(name, _rows(), _task().chance)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def index(methods: Sequence[Method]) -> str:
    rows = [
        (
            f"[`{m.name}`]({m.name}.md)",
            f"`{m.optimizer.__name__}`",
            m.summary,
            "yes" if needs(m, "loss") else "",
            str(sweeps(m)),
            " or ".join(str(len(slots.keys)) for slots in Slots.of(build(m)).all),
            " or ".join(f"{slots.bytes:g}" for slots in Slots.of(build(m)).all),
            _paper(m.paper),
        )
        for m in methods
    ]
    head = ("method", "class", "summary", "needs the loss", "sweeps", "slots", "bytes per parameter", "paper")
    first, *described_options = re.split(r"(?<=[.:;)]) (?=\w+: )", " ".join((EngineOptions.__doc__ or "").split()))
    sections = [
        _WRITTEN,
        "# Methods",
        f"{len(methods)} methods. Sweeps are passes over the parameters in a step, slots state of the size of the "
        "parameters; both, and the bytes for float32, at the default options. What else can be composed: "
        "[compositions](../compositions.md).",
        table(head, rows),
        "## Options of every method",
        first,
        "\n".join("- " + re.sub(r"^(\w+):", r"`\1`:", text) for text in described_options),
        "## The study",
        f"The pictures are of {_task().title}, {method_study.EPOCHS} epochs, batch {_task().batch_size}, constant lr, "
        "every other option at its default: seven learning rates from a hundredth of the default to a hundred times, "
        f"{method_study.SEEDS} seeds each. They show how a method depends on lr on a task that takes a second. They do "
        f"not rank methods: no schedule, one small network, {method_study.SEEDS} seeds, and the best lr is chosen on "
        "the data it is measured on, 1,000 images, of which the binomial standard error is 1.2 points. A run that "
        "diverged, or ended worse than chance, counts as chance. The grey curve is `adamw` around its own default, and "
        "the dotted line `adamw` at its best. `python scripts/method_study.py` trains all again. Which to use, and "
        "what schedules change: [guide](../guide.md).",
        "![All methods: accuracy at the default and at the best lr, and the range of lr that is as good](overview.png)",
        "Accuracies are medians in per cent, in brackets the range of the seeds; differences are points, to `adamw` at "
        "its best lr. Decades are those of the unbroken range of lr around the best; ≥ where it goes to the end of the "
        "grid.",
        table(method_study.HEAD, [(f"[`{name}`]({name}.md)", *rest) for name, *rest in _standings()]),
    ]
    return "\n\n".join(sections) + "\n"


# ---------------------------------------------------------------- writing them


def pages() -> dict[Path, str]:
    methods = [untuned.get(name) for name in untuned.list()]
    return {OUT / "index.md": index(methods)} | {OUT / f"{m.name}.md": page(m) for m in methods}


def publish(pages: dict[Path, str], check: bool, leftovers: Sequence[Path] = ()) -> int:
    """Write the stale pages and remove the leftovers; with `check`, name them and return 1 if there are any."""
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in (*stale, *leftovers):
        print(f"{'stale' if check else 'written' if path in pages else 'removed'}: {path}")
        if not check and path in pages:
            path.write_text(pages[path])
        elif not check:
            path.unlink()
    return int(check and bool(stale or leftovers))


def counted(readme: str) -> str:
    """README with the number of methods that there are."""
    text, times = re.subn(r"(?<=\*\*Methods\*\*, )\d+(?= of them)", str(len(untuned.list())), readme)
    if times != 1:
        raise ValueError("README.md should say '**Methods**, N of them' once")
    return text


def main(arguments: Sequence[str]) -> int:
    written = pages()
    leftovers = sorted(set(OUT.glob("*.md")) - written.keys())
    return publish(written | {README: counted(README.read_text())}, "--check" in arguments, leftovers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
