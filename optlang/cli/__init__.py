"""The command line: one file a command. Each declares its options, calls the driver and prints."""
