"""The diagnostics of a rule with mistakes: where they are and how to fix them."""

import optlang

RULE = """\
optimizer Clumsy
hyper lr = 1e-3 >= 0, beta = 1.5 in [0, 1)
state m as exp_avg, scale: scalar

m = bata*m + (1 - beta)*g
scale = m^2
lr = lr / 2
p += lr*g
"""

HALF_WRITTEN = """\
optimizer HalfWritten
hyper lr = 1e-3
if lr > 0
    p -= lr*(g + 1
"""


def main() -> None:
    for text in (RULE, HALF_WRITTEN):
        for finding in optlang.check(text):
            print(finding, end="\n\n")
    print("In Python, the same findings are raised as one exception:\n")
    try:
        optlang.compile(RULE)
    except optlang.OptlangError as error:
        print(
            f"OptlangError with {len(error.diagnostics)} findings:",
            ", ".join(d.code for d in error.diagnostics),
        )


if __name__ == "__main__":
    main()
