"""The functions of the language, a row each; :mod:`optlang.language.builtins` puts them together."""
