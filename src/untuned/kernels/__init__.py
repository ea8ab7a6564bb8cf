"""How a sweep runs: on tensors, one at a time (reference), or as one compiled call for all of them (native)."""
