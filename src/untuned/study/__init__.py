"""Studies of optimizers on real tasks: what `untuned compare` runs, keeps and reports."""
