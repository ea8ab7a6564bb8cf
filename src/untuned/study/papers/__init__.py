"""Studies of single papers: `untuned study NAME` runs one, and its page says which of the paper's claims hold here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from untuned.study.papers.frame import PaperStudy

SUMMARIES = {  # what `untuned study --help` says; the modules are imported when they run
    "ormo": "Ordered momentum for asynchronous SGD (OrMo): arXiv 2407.19234.",
    "lorasc": "Slow and fast low-rank experts in cascades (LoRASC): arXiv 2407.01491.",
    "hallmarks": "What trajectories of optimizers look like: arXiv 2403.07379.",
    "ising": "Ising machines with momentum and Adam as feedback: arXiv 2401.12135.",
    "marginal-value": "What momentum adds when the learning rate is coupled to it: arXiv 2307.15196.",
    "smoothing": "Momentum as smoothing by noise: arXiv 2402.02325.",
    "saddle": "How fast momentum leaves saddles, and when it is too much: arXiv 2106.02985.",
}


def load(name: str) -> PaperStudy:
    """The study `name`, one of SUMMARIES."""
    return importlib.import_module(f"untuned.study.papers.{name.replace('-', '_')}").STUDY
