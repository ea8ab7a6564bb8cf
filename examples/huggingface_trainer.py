"""A small GPT-2 on characters under the Trainer with Prodigy; stop it at any time and start it again, it goes on.

Run it:

    pip install "untuned[huggingface]"
    python examples/huggingface_trainer.py
"""

import argparse
import inspect

import torch
import transformers

import untuned
from untuned.integrations.huggingface import TrainerMixin


class Trainer(TrainerMixin, transformers.Trainer):
    """The Trainer; the optimizer hears the loss, the log has what the optimizer chose."""


def main() -> None:
    # The text is the source of a module of Python's library, cut into pieces of 64 characters.
    text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(argparse)])
    rows = [{"input_ids": piece, "labels": piece} for piece in text[: len(text) // 64 * 64].split(64)]

    torch.manual_seed(0)
    size = {"vocab_size": 128, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, bos_token_id=0, eos_token_id=0))
    folder = "trainer-run"
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=200,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",  # a factor of what the method chooses
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=50,
        save_steps=50,
        save_total_limit=2,
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows[:-100],
        eval_dataset=rows[-100:],
        optimizer_cls_and_kwargs=(untuned.Prodigy, {}),
    )
    trainer.train(resume_from_checkpoint=transformers.trainer_utils.get_last_checkpoint(folder))
    trainer.save_model(folder)


if __name__ == "__main__":
    main()
