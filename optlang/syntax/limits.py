"""Limits on the size of a rule.

Rules come from people, papers and programs. A limit turns a hang or an overflow into an error with a location. Each
limit is far above what published optimizers need.
"""

from __future__ import annotations

#: Characters in a rule.
MAX_CHARACTERS = 100_000

#: Names, numbers, signs and line ends in a rule.
MAX_TOKENS = 20_000

#: Nesting of brackets.
MAX_BRACKETS = 50

#: Nesting of blocks.
MAX_BLOCKS = 20

#: Nesting of operations: a sum of n terms has depth n. A recursive tree walk uses a few of Python's thousand stack
#: frames per level.
MAX_DEPTH = 100

#: Magnitude of the exponent of a number: float64 ends at 308.
MAX_EXPONENT = 400

#: Digits in a number.
MAX_DIGITS = 400

#: Characters in a name.
MAX_NAME = 200
