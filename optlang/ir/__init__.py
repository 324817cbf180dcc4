"""The intermediate representation: lowering of a specialised rule to a program, and the passes over it."""
