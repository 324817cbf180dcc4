"""Benchmarks of rules against their reference implementations, in the same run and on realistic lists of shapes."""
