"""The command line, as `conversation-store` and as `python -m conversation_store`."""

from __future__ import annotations

import sys

_NEEDED = {"click", "rich"}


def main() -> int:
    """Run the command line; return its exit code."""
    try:
        from .entrypoints.cli import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        hint = "pip install 'conversation-store[cli]'"
        print(f"conversation-store: the command line needs {error.name}: {hint}", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
