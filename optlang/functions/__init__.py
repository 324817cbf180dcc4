"""The functions of the language, a row each; :mod:`optlang.functions.table` puts them together."""
