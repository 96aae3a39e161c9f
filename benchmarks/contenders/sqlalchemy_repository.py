"""A repository and a unit of work on SQLAlchemy and asyncpg, as a team would write them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self, TypeAlias

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from .contender import Contender, Handle, Said
from .peers import connect_all, engine_options, make_schema, sqlalchemy_url
from .sqlalchemy_model import Conversation, Message, conversations, messages, metadata

History: TypeAlias = tuple[str, str, Sequence[Said]]
"""A user, a session, and all that was said."""

_BATCH = 100  # conversations that are loaded in one transaction


class AbstractConversationRepository(ABC):
    """A collection of conversations, wherever they are."""

    @abstractmethod
    def add(self, conversation: Conversation) -> None:
        """Add a new one."""

    @abstractmethod
    async def add_whole(self, histories: Sequence[History]) -> list[int]:
        """Add many that were held elsewhere, and return their ids."""

    @abstractmethod
    async def get(self, conversation_id: int) -> Conversation:
        """Return one to be changed: nobody else changes it until the unit of work ends."""

    @abstractmethod
    async def messages(self, conversation_id: int) -> Sequence[Message]:
        """Return all messages of one, oldest first."""

    @abstractmethod
    async def latest_messages(self, conversation_id: int, limit: int) -> Sequence[Message]:
        """Return the newest messages of one, oldest of them first."""

    @abstractmethod
    async def recent_of(self, user_id: str, limit: int) -> Sequence[Conversation]:
        """Return a user's conversations, the most recent activity first."""


class SqlAlchemyConversationRepository(AbstractConversationRepository):
    """Conversations in a session of SQLAlchemy."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, conversation: Conversation) -> None:
        self._session.add(conversation)

    async def add_whole(self, histories: Sequence[History]) -> list[int]:
        now = datetime.now(UTC)
        ids: Sequence[int] = (
            await self._session.scalars(
                insert(Conversation).returning(conversations.c.id, sort_by_parameter_order=True),
                [
                    {
                        "user_id": user_id,
                        "session_id": session_id,
                        "status": "active",
                        "message_count": len(said),
                        "version": 1,
                        "start_time": now,
                        "last_activity": now,
                    }
                    for user_id, session_id, said in histories
                ],
            )
        ).all()
        await self._session.execute(
            insert(Message),
            [
                {
                    "conversation_id": conversation_id,
                    "position": position,
                    "role": role,
                    "content": content,
                    "timestamp": now,
                }
                for conversation_id, (_, _, said) in zip(ids, histories, strict=True)
                for position, (role, content) in enumerate(said, 1)
            ],
        )
        return list(ids)

    async def get(self, conversation_id: int) -> Conversation:
        found: Conversation = await self._session.get_one(
            Conversation, conversation_id, with_for_update=True
        )
        return found

    async def messages(self, conversation_id: int) -> Sequence[Message]:
        query = (
            select(Message)
            .where(messages.c.conversation_id == conversation_id)
            .order_by(messages.c.position)
        )
        found: Sequence[Message] = (await self._session.scalars(query)).all()
        return found

    async def latest_messages(self, conversation_id: int, limit: int) -> Sequence[Message]:
        query = (
            select(Message)
            .where(messages.c.conversation_id == conversation_id)
            .order_by(messages.c.position.desc())
            .limit(limit)
        )
        found: Sequence[Message] = (await self._session.scalars(query)).all()
        return found[::-1]

    async def recent_of(self, user_id: str, limit: int) -> Sequence[Conversation]:
        query = (
            select(Conversation)
            .where(conversations.c.user_id == user_id)
            .order_by(conversations.c.last_activity.desc())
            .limit(limit)
        )
        found: Sequence[Conversation] = (await self._session.scalars(query)).all()
        return found


class AbstractUnitOfWork(ABC):
    """What is done in its block is committed explicitly, or not at all."""

    conversations: AbstractConversationRepository

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.rollback()

    @abstractmethod
    async def commit(self) -> None:
        """Keep what was done."""

    @abstractmethod
    async def rollback(self) -> None:
        """Undo what was not committed."""


class SqlAlchemyUnitOfWork(AbstractUnitOfWork):
    """A unit of work that is one session of SQLAlchemy."""

    def __init__(self, session_factory: async_sessionmaker[AsyncSession]) -> None:
        self._session_factory = session_factory

    async def __aenter__(self) -> Self:
        self._session = self._session_factory()
        self.conversations = SqlAlchemyConversationRepository(self._session)
        return await super().__aenter__()

    async def commit(self) -> None:
        await self._session.commit()

    async def rollback(self) -> None:
        await self._session.close()  # Session.rollback() would expire what was read


class SqlAlchemyRepositoryContender(Contender):
    """The service layer: one function for each thing that is asked."""

    name = "SQLAlchemy repository"
    package = "sqlalchemy"

    _engine: AsyncEngine
    _session_factory: async_sessionmaker[AsyncSession]

    async def open(self, dsn: str, *, connections: int) -> None:
        schema = "sqlalchemy_repository"
        await make_schema(dsn, schema)
        url = sqlalchemy_url(dsn, "asyncpg")
        self._engine = create_async_engine(url, **engine_options(connections, schema))
        self._session_factory = async_sessionmaker(self._engine, expire_on_commit=False)
        async with self._engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await connect_all(self._engine, connections)

    async def close(self) -> None:
        await self._engine.dispose()

    def _unit_of_work(self) -> AbstractUnitOfWork:
        return SqlAlchemyUnitOfWork(self._session_factory)

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        async with self._unit_of_work() as uow:
            conversation = Conversation(user_id, session_id)
            uow.conversations.add(conversation)
            conversation.say([first])
            await uow.commit()
            return conversation.id

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        async with self._unit_of_work() as uow:
            conversation = await uow.conversations.get(handle)
            conversation.say(turn)
            await uow.commit()

    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        async with self._unit_of_work() as uow:
            return await uow.conversations.latest_messages(handle, limit)

    async def read_all(self, handle: Handle) -> Sequence[Any]:
        async with self._unit_of_work() as uow:
            return await uow.conversations.messages(handle)

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        async with self._unit_of_work() as uow:
            return await uow.conversations.recent_of(user_id, limit)

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        handles: list[Handle] = []
        for start in range(0, len(conversations), _BATCH):
            async with self._unit_of_work() as uow:
                batch = conversations[start : start + _BATCH]
                handles += await uow.conversations.add_whole(batch)
                await uow.commit()
        return handles

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(message.role, message.content) for message in messages]
