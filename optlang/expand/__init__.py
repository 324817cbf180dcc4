"""Expansion to plain rules: removes transforms, pipelines, `use`, `inner`, histories and `iterate`."""
