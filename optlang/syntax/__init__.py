"""Parsing and formatting: text to syntax tree and back."""
