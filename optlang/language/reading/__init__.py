"""Text -> tree, in its parts: layout, nodes from grammar rules, and the words for syntax mistakes."""
