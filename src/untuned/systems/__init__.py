"""Systems around training that are no optimizers; each has a room of its own."""
