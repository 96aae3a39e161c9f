"""Where the world comes in: HTTP."""
