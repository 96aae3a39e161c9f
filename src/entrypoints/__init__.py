"""The ways in: the command line and its demo (extra `cli`), fixtures for tests (extra `pytest`)."""
