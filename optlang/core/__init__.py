"""Specialisation: a checked rule and the values known before a step -> the statements of one variant."""
