"""Tree -> rule, in its parts: names, declarations, kinds of values, and warnings."""
