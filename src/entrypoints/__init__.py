"""The ways in from outside Python: the command line and its demo. Needs the extra `cli`."""
