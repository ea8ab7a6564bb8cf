"""Suites of tasks, each of a few seconds on one core at its own budget.

In `public`, tasks of `LOOKED_AT` are those to develop defaults on, the others are only confirmed on: a default that was
chosen by looking at a task says little about it.
"""

LOOKED_AT = (
    "fashion-mlp",
    "fashion-vit",
    "fashion-autoencoder",
    "sotu-char",
    "sotu-glove",
    "adult-embeddings",
    "helmholtz-pinn",
    "fashion-cnn/30",
)
CONFIRMED_ON = (
    "fashion-cnn",
    "fashion-diffusion",
    "help-translation",
    "cartpole-policy",
    "sotu-char/1000",
    "cifar-resnet20",
    "ptb-lstm",
    "minilm-lora",
    "minilm-full",
)
FETCHED = ("cifar-resnet20", "ptb-lstm", "minilm-lora", "minilm-full")  # their data are downloaded first
PUBLIC = (*LOOKED_AT, *CONFIRMED_ON)
SUITES = {
    "public": PUBLIC,
    "shipped": tuple(task for task in PUBLIC if task not in FETCHED),
    "demo": ("fashion-mlp", "sotu-glove", "fashion-cnn/30"),
}
