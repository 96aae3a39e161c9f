"""What can become of a unit of work."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What became of a unit of work."""

    NOT_STARTED = "not_started"
    """Nothing was sent."""
    COMMITTED = "committed"
    """All of it is stored; in a host's transaction: as soon as the host commits."""
    ROLLED_BACK = "rolled_back"
    """Nothing of it is stored."""
    UNKNOWN = "unknown"
    """The connection was lost while it was committed: all of it is stored, or nothing."""
