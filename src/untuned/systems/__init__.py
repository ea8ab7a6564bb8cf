"""Whole systems of training and search around optimizers: `asynchronous`, `lorasc` and `ising`, imported by name."""
