"""Secrets that tests plant, and an ear for them: in logs, warnings, errors, traces and reprs."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import io
import logging
import pickle
import sys
import traceback
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from attrs import define, field

import conversation_store
from conversation_store import (
    ConversationRecord,
    ConversationStoreError,
    MessageDraft,
    close_conversation,
    start_conversation,
)

MARK = "f7a1c0de"
"""In every secret, and in nothing else."""
LOGGERS = ("", "conversation_store", "psycopg", "psycopg.pool", "asyncio")


def secret(of: str) -> str:
    """Return a secret that says where it was planted."""
    return f"{of} {MARK} {of}"


SLOTS = {"city": secret("slots"), secret("key of slots"): [secret("in slots")]}
METADATA = {"model": secret("metadata"), secret("key of metadata"): {"a": secret("in metadata")}}


def secret_draft(role: str = "user") -> MessageDraft:
    """Return a draft that is full of secrets."""
    return MessageDraft(
        role=role,
        content=secret("content"),
        intent_type=secret("intent"),
        slots=SLOTS,
        metadata=METADATA,
    )


def secret_turn() -> list[MessageDraft]:
    """Return a turn that is full of secrets."""
    return [secret_draft(), secret_draft("assistant")]


def secret_record(session_id: str, **more: Any) -> ConversationRecord:
    """Return a record that is full of secrets."""
    message: Any = {
        "role": "user",
        "content": secret("content"),
        "intent_type": secret("intent"),
        "slots": SLOTS,
        "metadata": METADATA,
    }
    record: Any = {"user_id": "u", "session_id": session_id, "metadata": METADATA}
    return {**record, "messages": [message, message], **more}  # type: ignore[typeddict-item]


# What is called -----------------------------------------------------------------------------------


@define
class World:
    """What a call is about: a conversation full of secrets, of a user."""

    conversation_id: int
    message_id: int
    user_id: str
    session_id: str
    number: int = 0

    def new_session(self) -> str:
        """Return the name of a session that does not exist."""
        self.number += 1
        return f"{self.session_id}-{self.number}"


_sessions = iter(range(10**9))


async def new_world(store: Any, *, user_id: str = "u", closed: bool = False) -> World:
    """Start a conversation full of secrets."""
    session = f"s{next(_sessions)}"
    conversation, messages = await start_conversation(
        store.unit_of_work(),
        user_id=user_id,
        session_id=session,
        drafts=secret_turn(),
        metadata=METADATA,
        intent_type=secret("intent"),
        request_id="r",
    )
    if closed:
        await close_conversation(store.unit_of_work(), conversation_id=conversation.id)
    return World(conversation.id, messages[0].id, user_id, session)


Arguments = Callable[[World], dict[str, Any]]


def _of_conversation(world: World) -> dict[str, Any]:
    return {"conversation_id": world.conversation_id}


def _start(world: World) -> dict[str, Any]:
    return {
        "user_id": world.user_id,
        "session_id": world.new_session(),
        "drafts": secret_turn(),
        "metadata": METADATA,
        "intent_type": secret("intent"),
        "request_id": "r",
    }


def _append(world: World) -> dict[str, Any]:
    return _of_conversation(world) | {"drafts": secret_turn(), "request_id": world.new_session()}


def _update(world: World) -> dict[str, Any]:
    return _of_conversation(world) | {
        "metadata": METADATA | {"n": world.new_session()},
        "intent_type": secret("intent"),
        "rescue_id": "rescue",
    }


def _import(world: World) -> dict[str, Any]:
    session = world.new_session()
    return {"records": [secret_record(session), secret_record(f"{session}+")]}


ARGUMENTS: dict[str, Arguments] = {
    "append_messages": _append,
    "archive_conversation": _of_conversation,
    "close_conversation": _of_conversation,
    "delete_conversation": _of_conversation,
    "erase_user": lambda world: {"user_id": world.user_id},
    "export_conversations": lambda world: {"user_id": world.user_id},
    "find_conversation": lambda world: {"user_id": world.user_id, "session_id": world.session_id},
    "get_conversation": _of_conversation,
    "get_message": lambda world: {"message_id": world.message_id},
    "get_or_start_conversation": _start,
    "import_conversations": _import,
    "latest_messages": _of_conversation,
    "list_conversations": lambda world: {"user_id": world.user_id},
    "messages_after": lambda world: _of_conversation(world) | {"position": 0},
    "pop_message": _of_conversation,
    "purge_conversations": lambda world: {
        "inactive_since": datetime.now(UTC) + timedelta(days=1),
        "user_id": world.user_id,
    },
    "redact_message": lambda world: {"message_id": world.message_id},
    "reopen_conversation": _of_conversation,
    "replace_messages": lambda world: _of_conversation(world) | {"drafts": secret_turn()},
    "start_conversation": _start,
    "update_conversation": _update,
}
"""What each service function is called with."""


def service_functions() -> dict[str, Any]:
    """Return the service functions: what takes a unit of work and is waited for."""
    found = {name: getattr(conversation_store, name) for name in conversation_store.__all__}
    return {
        name: function
        for name, function in found.items()
        if inspect.isfunction(function) and "uow" in inspect.signature(function).parameters
    }


async def call(name: str, uow: Any, values: dict[str, Any]) -> Any:
    """Call a service function; a stream is read to its end."""
    work = service_functions()[name](uow, **values)
    if isinstance(work, AsyncGenerator):
        return [record async for record in work]
    return await work


def ways_to_call(
    name: str, new_unit: Callable[[], Any], world: World
) -> list[Callable[[], Awaitable[Any]]]:
    """Return the ways to call a function: alone, after another write, after a write was sent."""

    async def alone() -> Any:
        return await call(name, new_unit(), ARGUMENTS[name](world))

    async def after_a_write() -> Any:
        async with new_unit() as uow:
            uow.messages.append(world.conversation_id, [secret_draft()])
            return await call(name, uow, ARGUMENTS[name](world))

    async def in_a_transaction() -> Any:
        async with new_unit() as uow:
            await uow.messages.append(world.conversation_id, [secret_draft()])
            async with uow:
                return await call(name, uow, ARGUMENTS[name](world))

    return [alone, after_a_write, in_a_transaction]


# What is heard ------------------------------------------------------------------------------------


class _Handler(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.NOTSET)
        self.heard = heard
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(f"{self.format(record)} {record.args!r}")


@define
class Ear:
    """Hears all that is logged, warned of, raised or shown, and finds secrets in it."""

    heard: list[str] = field(factory=list[str])
    kinds: list[type[BaseException]] = field(factory=list[type[BaseException]])
    """Of the errors that were heard."""

    def error(self, error: BaseException) -> None:
        """Hear an error: its trace, and all that hangs on it."""
        self.kinds.append(type(error))
        self.heard += traceback.format_exception(error)
        for link in _links(error):
            self.heard += [str(link), repr(link), repr(vars(link)), repr(link.args)]
            self.heard += [repr(getattr(link, name, None)) for name in ("object", "doc", "pgconn")]
            if isinstance(link, psycopg.Error):
                diag = link.diag
                names = [name for name in dir(diag) if not name.startswith("_")]
                self.heard.append(repr([getattr(diag, name) for name in names]))
            if isinstance(link, ConversationStoreError | psycopg.Error):
                self.heard += [repr(vars(copy.copy(link))), repr(pickle.dumps(link))]

    async def outcome(self, work: Awaitable[Any]) -> Any:
        """Wait for work and hear what it comes to, an error too; return that."""
        try:
            result = await work
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.error(error)
            return error
        if not _is_plain(result):
            self.heard += [repr(result), str(result)]
        return result

    def objects(self) -> None:
        """Hear the repr of each object of the package that there is, and of each task."""
        gc.collect()  # what constructors refused is half made, and hangs on traces alone
        for one in gc.get_objects():
            kind = type(one)
            if str(kind.__module__).startswith("conversation_store"):
                self.heard.append(repr(one))
        self.heard += map(repr, asyncio.all_tasks())

    def leaks(self) -> list[str]:
        """Return the first things heard that hold a secret, around the place where they do."""
        leaks = [text for text in dict.fromkeys(self.heard) if MARK in text]
        return [text[max(0, text.index(MARK) - 500) :][:700] for text in leaks[:5]]


def _is_plain(result: Any) -> bool:
    """Whether it is what the host asked for as plain data: records."""
    return isinstance(result, list) and any(isinstance(item, dict) for item in result)


def _links(error: BaseException) -> list[BaseException]:
    """Return an error with its causes and contexts, the suppressed ones too, and tries before."""
    known: dict[int, BaseException] = {}
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in known:
            known[id(link)] = link
            links += [link.__cause__, link.__context__, *getattr(link, "tried", ())]
    return [*known.values()]


@contextmanager
def listening() -> Iterator[Ear]:
    """Hear everything at DEBUG, asyncio's debug mode too, and fail where a secret was heard."""
    ear = Ear()
    handler = _Handler(ear.heard)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.disabled) for logger in loggers]
    loop = asyncio.get_running_loop()
    duration, output = loop.slow_callback_duration, io.StringIO()
    outputs = sys.stdout, sys.stderr
    logging.getLogger().addHandler(handler)
    try:
        sys.stdout = sys.stderr = output
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0  # every callback is told of, with its task
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield ear
            gc.collect()
        ear.heard += [str(warning) for warning in warned]
    finally:
        sys.stdout, sys.stderr = outputs
        loop.set_debug(False)
        loop.slow_callback_duration = duration
        logging.getLogger().removeHandler(handler)
        for logger, (level, disabled) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.disabled = disabled
    ear.heard.append(output.getvalue())
    leaks = ear.leaks()
    assert not leaks, "\n\n".join(leaks)
