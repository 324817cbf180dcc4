"""Program -> text: one writer for each language, and helpers that the texts call."""
