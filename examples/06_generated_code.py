"""Compiler output for a rule: the program and the Python source."""

import optlang

RULE = """\
optimizer NormedMomentum
hyper lr = 0.1 >= 0, beta = 0.9 in [0, 1)
hyper nesterov = false
state m

m = beta*m + g
u = g + beta*m if nesterov else m
p -= lr * u / max(norm(u), 1e-6)
"""


def main() -> None:
    print(RULE)
    for title, stage, values in (
        ("The program", "program", {}),
        ("The source", "source", {}),
        ("The source with nesterov=True", "source", {"nesterov": True}),
    ):
        print(f"{title}\n{'-' * len(title)}")
        print(optlang.emit(RULE, stage=stage, values=values))


if __name__ == "__main__":
    main()
