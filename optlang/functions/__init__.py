"""The functions of the language, one row each; :mod:`optlang.functions.table` collects them."""
