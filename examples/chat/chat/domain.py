"""What the chat service knows by itself: what a turn costs, what may be spent, what is found."""

from __future__ import annotations

import re

from attrs import frozen

from conversation_store import Conversation


class ChatError(Exception):
    """What the chat service itself refuses."""


class AllowanceSpent(ChatError):
    """The user has spent what may be spent; the model is not asked."""


class ModelUnavailable(ChatError):
    """The model gives no answer now."""


class SessionNotFound(ChatError):
    """The user has no conversation of this session."""


@frozen(kw_only=True)
class Charge:
    """What one turn cost its user; stored in the transaction of the turn, or not at all."""

    conversation_id: int
    request_id: str
    """The key of the turn: it is charged once, however often it is sent."""
    position: int
    """Where the turn begins in its conversation."""
    tokens: int


@frozen(kw_only=True)
class Allowance:
    """What a user has spent, and may spend in all, in tokens."""

    spent: int
    most: int

    def check(self) -> None:
        """Raise AllowanceSpent if nothing is left. Turns at the same moment may go beyond it."""
        if self.spent >= self.most:
            raise AllowanceSpent(f"all {self.most} tokens are spent")


@frozen(kw_only=True)
class Hit:
    """A message that a search found."""

    session_id: str
    position: int
    excerpt: str


def count_tokens(*texts: str) -> int:
    """Say how many tokens texts have: a stand-in for the number that a model reports."""
    return sum(len(text) // 4 + 1 for text in texts)


def title_from(question: str) -> str:
    """Name a conversation after its first question."""
    line = " ".join(question.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def title_of(conversation: Conversation) -> str:
    """Return its title; of one that began elsewhere what it is about, or its session."""
    about = (conversation.intent_type or "").replace("_", " ").capitalize()
    return str((conversation.metadata or {}).get("title") or about or conversation.session_id)


def words(text: str) -> list[str]:
    """Return the words of a text as they are searched: letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def excerpt(content: str, wanted: list[str]) -> str:
    """Return what stands around the first of the wanted words."""
    places = (content.lower().find(word) for word in wanted)
    place = min((place for place in places if place >= 0), default=0)
    start = max(content.rfind(" ", 0, max(0, place - 30)) + 1, place - 80)
    part = " ".join(content[start : start + 160].split())
    return f"{'… ' if start else ''}{part}{' …' if start + 160 < len(content) else ''}"
