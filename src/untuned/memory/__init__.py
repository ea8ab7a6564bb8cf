"""What a step works on: tensors in buckets, their slots and numbers, and checkpoints of them."""
