"""Compiled rules -> ``torch.optim.Optimizer`` classes. This layer depends on torch, but not on the compiler."""
