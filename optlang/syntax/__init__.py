"""Text -> tree and tree -> text."""
