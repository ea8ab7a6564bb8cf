"""Write docs/conformance.md: the checks, and how torch's and the published optimizers do in them.

    python scripts/conformance_table.py

Needs the extra `parity`. Takes some minutes.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import untuned
from untuned.testing.conformance import CAPABILITIES, CHECKS, Pool, Result, Target, report

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
MARKS = {"passed": "✓", "failed": "**✗**", "does not apply": "–"}
TARGETS: dict[str, dict[str, Any]] = {
    "torch.optim:AdamW": {},
    "torch.optim:SGD": {"momentum": 0.9},
    "momo:Momo": {},
    "momo:MomoAdam": {},
    "prodigyopt:Prodigy": {},
    "dadaptation:DAdaptAdam": {},
    "dadaptation:DAdaptSGD": {},
    "dadaptation:DAdaptAdaGrad": {},
    "dadaptation:DAdaptLion": {},
    "dadaptation:DAdaptAdan": {},
    "conformance_table:mechanic_adamw": {},
    "schedulefree:AdamWScheduleFree": {},
    "madgrad:MADGRAD": {},
}


def mechanic_adamw(params: Any, **options: Any) -> Any:
    """The published Mechanic around AdamW: a factory like the one you write for what `module:Class` cannot say."""
    from mechanic_pytorch import mechanize

    return mechanize(torch.optim.AdamW)(params, **options)


_HEAD = """<!-- Written by scripts/conformance_table.py. -->

# Conformance: what any optimizer should do

`untuned check` runs {count} small checks on any torch optimizer and says in one sentence each what its users would
suffer: does it resume exactly, honour the lr of a group, stand still at lr 0, work under FSDP2? A run takes a few
seconds; every check runs in a worker process, so that one that hangs or dies costs itself alone.

    untuned check momo                                            # a method of this library
    untuned check torch.optim:AdamW                               # a class
    untuned check my_module:make --option lr=1.0                  # a function of (params, **options)
    untuned check my_module:make --json out.json --badge out.svg  # for a page or a pipeline; exit status 1 on failure
    untuned check my_module:make --expected nan_gradient="GradScaler is always on"

A check that is expected to fail carries its reason, and fails if it passes. In a test suite:

```python
import pytest
import torch

import untuned
from untuned.testing import check_optimizer
from untuned.testing.conformance import CHECKS


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check):
    check_optimizer(torch.optim.Adam, options={{"lr": 0.01}}, only=[check])
```

`check_optimizer` runs in the process that calls it, where a debugger can stop; it needs nothing but torch.

What an optimizer can do is found by trying. If that goes wrong, say it: `--declare needs_loss=yes`, or
`check_optimizer(make, needs_loss=True)`.

| capability | means |
| --- | --- |
{capabilities}

The checks train a net of 49 weights in float64 for a few steps and compare with another way to the same point; "of the
way" is a difference divided by how far the weights went. Bit-by-bit equality is asked for where nothing is computed
otherwise (copies, checkpoints), 1e-6 of the way elsewhere.
"""


Found = list[tuple[Target, list[Result]]]


def run(targets: dict[str, dict[str, Any]]) -> Found:
    found: Found = []
    with Pool() as pool:
        for name, options in targets.items():
            target = pool.detect(Target(name, options))
            results = {r.check: r for r in pool.run(target, list(CHECKS))}
            found.append((target, [results[check] for check in CHECKS]))
            print(name, sum(r.status == "failed" for r in results.values()), "failed")
    return found


def page(found: Found, ours: Found) -> str:
    capabilities = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in CAPABILITIES.items())
    return "\n".join(
        [_HEAD.format(count=len(CHECKS), capabilities=capabilities), *_checks(), *_ours(ours), *_results(found)]
    )


def _checks() -> Iterator[str]:
    yield "## The checks"
    for theme, checks in groupby(CHECKS.values(), lambda check: check.theme):
        module = inspect.getdoc(sys.modules[f"untuned.testing.conformance.checks.{theme}"])
        yield f"\n{module}\n"
        yield from (f"- `{check.name}`: {check.title}" for check in checks)


def _ours(ours: Found) -> Iterator[str]:
    failed = [(target.name, r) for target, results in ours for r in results if r.status == "failed"]
    clean = len(ours) - len({name for name, _ in failed})
    yield f"\n## This library\n\nOf {len(ours)} methods, with default options, {clean} pass every check that applies."
    yield from (f"\n- `{name}` fails `{r.check}`: {_plain(r.remark)}." for name, r in failed)


def _results(found: Found) -> Iterator[str]:
    versions = {name: version for target, _ in found for name, version in report.versions(target).items()}
    yield "\n## torch and published packages\n"
    yield ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + "; CPU."
    yield "Default options, SGD with momentum 0.9; `conformance_table:mechanic_adamw` (with `PYTHONPATH=scripts`) is"
    yield "`mechanize(torch.optim.AdamW)`. What torch's own AdamW fails: nothing guards it against NaN, and being asked"
    yield "for a distributed checkpoint takes a step with lr 0, which it counts (pytorch issue 164929).\n"
    numbers = [f"[{i}](#{_anchor(target)})" for i, (target, _) in enumerate(found, start=1)]
    yield "| | " + " | ".join(numbers) + " |"
    yield "| --- |" + " :-: |" * len(found)
    for row, name in enumerate(CHECKS):
        yield f"| `{name}` | " + " | ".join(MARKS[results[row].status] for _, results in found) + " |"
    for i, (target, results) in enumerate(found, start=1):
        failed = [r for r in results if r.status == "failed"]
        applied = sum(r.status != "does not apply" for r in results)
        options = "".join(f" --option {name}={value!r}" for name, value in target.options.items())
        yield f'\n<a id="{_anchor(target)}"></a>\n'
        yield f"### {i}. `untuned check {target.name}{options}`: {len(failed)} of {applied} fail\n"
        [memory] = [r.remark for r in results if r.check == "memory"]
        yield f"State: {memory}.\n"
        yield from (f"- `{r.check}`: {_plain(r.remark)}." for r in failed)


def _anchor(target: Target) -> str:
    return target.name.replace(":", "-").replace(".", "-").lower()


def _plain(text: str) -> str:
    """As Markdown that shows the text as it is."""
    return re.sub(r"([<*_`])", r"\\\1", text.rstrip(".:!"))


if __name__ == "__main__":
    PAGE.write_text(page(run(TARGETS), run({name: {} for name in untuned.list()})))
