"""Syntax errors: what was found, what was expected, and what to write instead."""
