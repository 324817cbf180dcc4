"""Files that are kept from process to process: compiled kernels and variants, and the tables of the parser."""
