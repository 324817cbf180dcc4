"""``python -m optlang``: the command line."""

from optlang.cli.app import main

main()
