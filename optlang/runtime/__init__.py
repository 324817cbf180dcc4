"""Compiled rules -> ``torch.optim.Optimizer`` classes: the layer that knows torch, and nothing of the compiler."""
