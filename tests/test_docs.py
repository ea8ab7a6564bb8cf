"""The code in the documentation runs, and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from untuned.parts.fit import WORDS
from untuned.parts.kinds import ADVICE, KINDS
from untuned.parts.place import LETTERS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/wrappers.md", "docs/schedules.md", "docs/systems.md"]
)
def test_code_blocks_run_and_print_their_comments(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(block, names)
        promised = re.findall(r"^print\(.*\)\s+# (.*)$", block, re.MULTILINE)
        assert out.getvalue().splitlines() == promised


def test_the_page_of_a_step_names_every_verb_letter_and_word() -> None:
    text = (ROOT / "docs" / "step.md").read_text()
    verbs = {verb for kind in KINDS for verb in kind.verbs if verb not in ADVICE}
    assert not {name for name in verbs | {*LETTERS} | {*WORDS} if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)}
