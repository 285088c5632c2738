"""The command line: `sjc X` is `commands/x.py`, its options and its body."""
