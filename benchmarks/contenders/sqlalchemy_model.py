"""The domain model of the SQLAlchemy contender, and how it is mapped: imperatively.

The model knows nothing of the database, except that its messages are a write-only collection: an
append loads none of those that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry, relationship

from .contender import Said


@dataclass(eq=False)
class Message:
    """What was said, at its place in the conversation."""

    position: int
    role: str
    content: str
    timestamp: datetime
    intent_type: str | None = None
    slots: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None


class Conversation:
    """The aggregate root: it numbers the messages, under the row lock that it was read with."""

    id: int
    messages: Any

    def __init__(self, user_id: str, session_id: str) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.status = "active"
        self.message_count = 0
        self.version = 0
        self.start_time = self.last_activity = datetime.now(UTC)

    def say(self, turn: Sequence[Said]) -> None:
        """Append a turn."""
        self.last_activity = now = datetime.now(UTC)
        self.messages.add_all(
            Message(position, role, content, now)
            for position, (role, content) in enumerate(turn, self.message_count + 1)
        )
        self.message_count += len(turn)
        self.version += 1


metadata = MetaData()

conversations = Table(
    "conversations",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("message_count", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("start_time", DateTime(timezone=True), nullable=False),
    Column("last_activity", DateTime(timezone=True), nullable=False),
    UniqueConstraint("user_id", "session_id"),
    Index("conversations_activity", "user_id", "last_activity"),
)

messages = Table(
    "messages",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("conversation_id", ForeignKey("conversations.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("timestamp", DateTime(timezone=True), nullable=False),
    Column("intent_type", Text),
    Column("slots", JSONB(none_as_null=True)),
    Column("extra", JSONB(none_as_null=True)),
    UniqueConstraint("conversation_id", "position"),
)


def start_mappers() -> None:
    """Tie the model to the tables; once in a process."""
    mapper = registry(metadata=metadata)
    mapper.map_imperatively(Message, messages)
    mapper.map_imperatively(
        Conversation,
        conversations,
        properties={"messages": relationship(Message, lazy="write_only")},
    )


start_mappers()
