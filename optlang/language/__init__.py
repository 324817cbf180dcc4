"""The language: text -> tree -> checked rule -> the statements of a variant."""
