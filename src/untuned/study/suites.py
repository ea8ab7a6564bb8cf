"""Suites of tasks, each of a few seconds on one core at its own budget.

Tasks of the first dict are those to develop defaults on, the others are only confirmed on: a default that was chosen by
looking at a task says little about it.
"""

# Epochs where the task's own would fit noise: a validation loss that rises again says nothing about optimizers.
LOOKED_AT = {
    "fashion-mlp": 6.0,
    "fashion-vit": None,
    "fashion-autoencoder": None,
    "sotu-char": None,
    "sotu-glove": None,
    "adult-embeddings": None,
    "helmholtz-pinn": None,
    "fashion-cnn/30": 8.0,
    "minilm-lora": None,
    "minilm-full": None,
}
CONFIRMED_ON = {
    "fashion-cnn": 8.0,
    "fashion-diffusion": None,
    "help-translation": None,
    "cartpole-policy": None,
    "sotu-char/1000": None,
    "cifar-resnet20": None,
    "ptb-lstm": None,
}
FETCHED = ("cifar-resnet20", "ptb-lstm", "minilm-lora", "minilm-full")  # their data are downloaded first
PUBLIC: dict[str, float | None] = {**LOOKED_AT, **CONFIRMED_ON}
SUITES: dict[str, dict[str, float | None]] = {
    "public": PUBLIC,
    "shipped": {task: epochs for task, epochs in PUBLIC.items() if task not in FETCHED},
    "demo": {task: PUBLIC[task] for task in ("fashion-mlp", "sotu-glove", "helmholtz-pinn")},
}
