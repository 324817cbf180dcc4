"""Checks: names, shapes, kinds, states, formats, coverage; every mistake one finding."""
