"""Semantic checks: names, shapes, kinds, states, formats and coverage."""
