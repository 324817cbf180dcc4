"""Declarations: the names of a rule, hyperparameters and constants; and the collector of findings."""
