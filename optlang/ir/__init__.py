"""Checked rule -> program, and the passes over it."""
