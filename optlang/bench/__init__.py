"""Timing rules against the optimizers they are written after, in the same run and on real lists of shapes."""
