"""Those that are measured."""
