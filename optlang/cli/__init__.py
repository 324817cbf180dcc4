"""The command line: one file per command. Each file declares the options, calls the driver and prints the result."""
