"""How large a rule may be.

Rules come from people, papers and programs; a limit turns what would be a hang or an overflow into an error
that names the place. Each is far above what a published optimizer needs.
"""

from __future__ import annotations

#: Characters of a rule's text.
MAX_CHARACTERS = 100_000

#: Names, numbers, signs and line ends of a rule.
MAX_TOKENS = 20_000

#: Brackets that are open at the same time.
MAX_BRACKETS = 50

#: Blocks within blocks.
MAX_BLOCKS = 20

#: Operations within operations: a sum of n terms has depth n. Whatever walks a tree recursively spends a few of
#: Python's thousand stack frames on each level.
MAX_DEPTH = 100

#: Largest magnitude of the exponent of a number: float64 ends at 308.
MAX_EXPONENT = 400

#: Digits of a number.
MAX_DIGITS = 400

#: Characters of a name.
MAX_NAME = 200
