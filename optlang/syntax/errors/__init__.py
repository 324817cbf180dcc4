"""What a syntax error says: what was found, what was expected, and what to write instead."""
