"""What a rule declares: its names, their roles, hyperparameters, constants; and the findings that checks collect."""
