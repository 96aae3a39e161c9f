"""Gives a busy server the time to cancel, where a test is about what the store makes of an answer.

That who was cancelled waits no longer than is promised is for other tests to say.
"""

from __future__ import annotations

from typing import Final

import pytest

from conversation_store.adapters.postgres import commit, waiting

LONG: Final = 5.0


def wait_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have who told the server to cancel wait for as long as a busy one takes to do it."""
    monkeypatch.setattr(waiting.interruptibly, "__defaults__", (LONG,))
    monkeypatch.setattr(commit, "CANCEL_GRACE", LONG)
