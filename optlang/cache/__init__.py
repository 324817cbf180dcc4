"""The on-disk cache: compiled kernels and variants, and the parser's tables."""
