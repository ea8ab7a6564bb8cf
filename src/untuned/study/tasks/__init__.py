"""The learning problems a study can run, by name."""

import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import get_type_hints

from .cifar import CifarResNet20
from .clicks import AdultEmbeddings
from .finetuning import MiniLMFull, MiniLMLoRA
from .generation import FashionAutoencoder, FashionDiffusion
from .glove import SotuGlove
from .helmholtz import HelmholtzPINN
from .images import FashionCNN, FashionMLP, FashionViT, MnistMLP
from .logistic import TABLES, LogisticRegression
from .reinforcement import CartPolePolicy
from .task import Task, evaluating, seeded, shuffled
from .text import SotuChar
from .translation import HelpTranslation
from .units import InUnits
from .words import PtbLSTM

__all__ = ["Task", "evaluating", "load", "names", "seeded", "shuffled"]

_TASKS: dict[str, Callable[[], Task]] = {
    **{f"logreg-{table}": partial(LogisticRegression, table) for table in TABLES},
    "fashion-mlp": FashionMLP,
    "fashion-cnn": FashionCNN,
    "fashion-vit": FashionViT,
    "fashion-autoencoder": FashionAutoencoder,
    "fashion-diffusion": FashionDiffusion,
    "sotu-char": SotuChar,
    "helmholtz-pinn": HelmholtzPINN,
    "cartpole-policy": CartPolePolicy,
    "help-translation": HelpTranslation,
    "sotu-glove": SotuGlove,
    "adult-embeddings": AdultEmbeddings,
    "ptb-lstm": PtbLSTM,
    "minilm-lora": MiniLMLoRA,
    "minilm-full": MiniLMFull,
    "mnist-mlp": MnistMLP,
    "cifar-resnet20": CifarResNet20,
}


def names() -> list[str]:
    """Names of the built-in tasks."""
    return list(_TASKS)


def load(name: str) -> Task:
    """The built-in task `name`, or the task class `MyTask` of a module that Python finds, written "my_module:MyTask".

    The current directory is searched for modules too. "NAME/30" is the built-in task NAME with its parameters stored in
    units of 1/30, for any positive number: a method that needs no tuning reaches the same.

    Raises:
        ValueError: no such task or module, it raised something, or the class is no complete `Task`.
        FileNotFoundError: its data has to be fetched first; the message names the command.
    """
    if ":" in name:
        return _load_own(name)
    known, slash, number = name.partition("/")
    unit = _positive(number) if slash else 1.0
    if known not in _TASKS or not unit:
        raise ValueError(
            f"no task {name!r}; there are {', '.join(_TASKS)}, each also as NAME/30 with its parameters in units of "
            "1/30, or of 1 over another positive number, and your own as module:Class"
        )
    task = _TASKS[known]()
    return InUnits(task, unit, name) if slash else task


def _positive(number: str) -> float:
    """The positive finite number that is written there, or 0."""
    try:
        value = float(number)
    except ValueError:
        return 0.0
    return value if 0 < value < math.inf else 0.0


def _load_own(name: str) -> Task:
    module_name, _, class_name = name.partition(":")
    if os.getcwd() not in sys.path:  # an installed command does not have it there, unlike `python -m`
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever its code raises
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"task {name!r}: no module {error.name!r} here or among the installed packages") from error
        raise ValueError(f"task {name!r}: {module_name!r} cannot be imported: {_said(error)}") from error
    task_class = getattr(module, class_name, None)
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise ValueError(
            f"task {name!r}: {class_name!r} in {module.__file__} is no subclass of untuned.study.tasks.Task"
        )
    if lacking := sorted(task_class.__abstractmethods__):
        raise ValueError(f"task {name!r} lacks the methods {', '.join(lacking)}")
    try:
        inspect.signature(task_class).bind()
    except TypeError as error:
        raise ValueError(f"task {name!r} cannot be created without arguments: {error}") from error
    try:
        task = task_class()
    except Exception as error:
        raise ValueError(f"task {name!r} cannot be created: {_said(error)}") from error
    for attribute, kind in get_type_hints(Task).items():
        value = getattr(task, attribute, None)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"task {name!r}: {attribute!r} must be of type {kind.__name__}, got {value!r}")
    return task


def _said(error: Exception) -> str:
    """The error, and the line of the task's code that led to it."""
    ours = os.path.dirname(__file__), os.path.dirname(importlib.__file__)
    lines = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*ours, "<frozen"))]
    return f"{type(error).__name__}: {error}" + (f" ({lines[0].filename}, line {lines[0].lineno})" if lines else "")
