"""The optimizer: parts run by the engine behind the interface of torch.optim."""
