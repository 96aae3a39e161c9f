"""What the scripts beside this one share: a move of sessions, and the comparison that ends it.

A script tells how its framework's tables are read: a `Peer`. All sessions are read in one stream
and one snapshot, and those that are new are imported. Nothing is written there, so a move can be
run as often as one likes. A session that went on there since it was moved is moved anew, whole.
Nothing that was said here is removed: a session that differs in another way is left, and named.

At the end every session is read as the framework reads it, and as our adapter does, and the two are
compared item by item.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import psycopg
from sqlalchemy import URL, make_url

from conversation_store import (
    Conversation,
    ConversationRecord,
    ConversationStore,
    ConversationStoreError,
    ImportReceipt,
    InvalidInput,
    MessageDraft,
    NewConversation,
    StoreMisconfigured,
    delete_conversation,
    find_conversation,
    import_conversations,
    update_conversation,
)
from conversation_store.adapters.postgres.connection_string import check_connection_string

LARGEST: Final = 45_000_000
"""Most bytes of a session there; a record of an import holds 100 MB of content and metadata."""
MOVED: Final = "moved_from"
"""The key of a conversation's metadata that says that it was moved, and from where."""
_BYTES_OF_A_ROW: Final = 50


class Row(NamedTuple):
    """An item of a session, as the framework's tables hold it."""

    key: Any
    """Which session. Rows of one session follow each other, in the order of its items."""
    data: str | None
    """JSON; None in the only row of a session without items."""
    at: datetime | None = None
    """When it was stored."""
    began: datetime | None = None
    """When the session began; None: with its first item."""
    ended: datetime | None = None
    """When it was used last; None: with its last item."""
    state: Any = None
    """What the framework keeps of the session besides its items."""


class Told(NamedTuple):
    """What a framework, or our adapter, gives for a session."""

    items: list[Any]
    state: Any = None


class UnreadableError(Exception):
    """The tables are not such as can be read; why, is said."""


class Peer(Protocol):
    """The tables of a framework: how they are read, and what their rows are here."""

    notes: Counter[str]
    """What was seen on the way, and how often."""

    def rows(self) -> AsyncIterator[Row]:
        """Read all items."""
        ...

    def begun(self, first: Row) -> ConversationRecord:
        """Return the record of a session, yet without messages. Raises: LookupError: no user."""
        ...

    def draft(self, data: str) -> MessageDraft | None:
        """Return the message that an item becomes; None for what the framework passes over."""
        ...

    async def theirs(self, key: Any) -> Told:
        """Read a session as the framework does."""
        ...

    async def ours(self, store: ConversationStore, record: ConversationRecord) -> Told:
        """Read its conversation as our adapter does."""
        ...


class State(Enum):
    """How a session there and its conversation here stand to each other."""

    NEW = "is not here"
    SAME = "is the same there and here"
    AHEAD = "went on here"
    BEHIND = "went on there since it was moved: run this again"
    APART = "differs there and here, and not for one went on: left as it is"
    UNFIT = "cannot be moved"


class Session(NamedTuple):
    """A session there, and the record that it becomes."""

    key: Any
    record: ConversationRecord | None
    problem: str = ""
    """Why there is no record."""


class Move:
    """A move from the tables of a framework into a store."""

    def __init__(self, peer: Peer, store: ConversationStore) -> None:
        self._peer = peer
        self._store = store

    async def run(self) -> str:
        """Bring here what is not, and say what was done."""
        states: Counter[State] = Counter()

        async def new() -> AsyncIterator[ConversationRecord]:
            async for session in self._sessions():
                state, there = await self._compare(session)
                states[state] += 1
                if state is State.NEW and session.record is not None:
                    yield session.record
                elif state is State.BEHIND and there is not None and session.record is not None:
                    await self._replace(there, session.record)

        receipt = await import_conversations(
            self._store.unit_of_work(), records=new(), on_duplicate="skip", progress=_tell
        )
        said = f"moved {_counts(receipt)}"
        if states[State.BEHIND]:
            said += f", and {states[State.BEHIND]:,} anew that went on there"
        here = states[State.SAME] + states[State.AHEAD]
        return said + (f"; {here:,} were here" if here else "")

    async def check(self) -> tuple[str, bool]:
        """Compare all sessions, name those that differ, and say how many; and whether none does."""
        states: Counter[State] = Counter()
        async for session in self._sessions():
            state, _ = await self._compare(session)
            states[state] += 1
            if state not in {State.SAME, State.AHEAD}:
                text = f"  {session.key!r} {state.value}"
                print(f"{text}: {session.problem}" if session.problem else text, file=sys.stderr)
        well = states[State.SAME] + states[State.AHEAD]
        differ = states.total() - well
        text = f"checked {_counted(states.total(), 'session')}: "
        text += f"{states[State.SAME]:,} the same there and here"
        if states[State.AHEAD]:
            text += f", {states[State.AHEAD]:,} went on here"
        return text + (f", {differ:,} NOT, named above" if differ else ""), differ == 0

    async def _sessions(self) -> AsyncIterator[Session]:
        self._peer.notes.clear()
        async for rows, size in _by_session(self._peer.rows()):
            key = rows[0].key
            problem = ""
            record: ConversationRecord | None = None
            try:
                if size > LARGEST:
                    problem = f"it has more than {LARGEST // 1_000_000} MB"
                else:
                    record = self._record(rows)
            except (InvalidInput, LookupError) as error:
                problem = str(error)
            except (AttributeError, TypeError, ValueError) as error:  # its text may be a person's
                problem = f"an item could not be read: {type(error).__name__}"
            yield Session(key, record, problem)

    def _record(self, rows: Sequence[Row]) -> ConversationRecord:
        record = self._peer.begun(rows[0])
        record["metadata"] = {**(record.get("metadata") or {}), MOVED: record.get("source")}
        NewConversation(  # refuses what an import would refuse
            user_id=record["user_id"], session_id=record["session_id"], metadata=record["metadata"]
        )
        moments: list[datetime | None] = []
        for row in rows:
            draft = None if row.data is None else self._peer.draft(row.data)
            if draft is not None:
                moments.append(row.at)
                record["messages"].append(
                    {
                        "role": str(draft.role),
                        "content": draft.content,
                        "metadata": draft.metadata,
                    }
                )
            elif row.data is not None:
                self._peer.notes["passed over, as the framework does"] += 1
        times = self._rising(moments)
        for message, time in zip(record["messages"], times, strict=False):
            message["timestamp"] = time.isoformat()
        began, ended = rows[0].began, rows[0].ended
        if times or began:
            first = min(filter(None, [*times[:1], began]))
            record["start_time"] = first.isoformat()
            record["last_activity"] = max(filter(None, [*times[-1:], ended, first])).isoformat()
        return record

    def _rising(self, times: Sequence[datetime | None]) -> list[datetime]:
        """Return the times, none before the one before it; none at all if there are none."""
        latest = next(filter(None, times), None)
        if latest is None:
            return []
        rising: list[datetime] = []
        for time in times:
            if time is None or time < latest:
                self._peer.notes["with the time of the one before it, later than its own"] += 1
            else:
                latest = time
            rising.append(latest)
        return rising

    async def _compare(self, session: Session) -> tuple[State, Conversation | None]:
        if session.record is None:
            return State.UNFIT, None
        user_id, session_id = session.record["user_id"], session.record["session_id"]
        there = await find_conversation(
            self._store.unit_of_work(), user_id=user_id, session_id=session_id
        )
        if there is None:
            return State.NEW, None
        theirs = await self._peer.theirs(session.key)
        ours = await self._peer.ours(self._store, session.record)
        is_moved = MOVED in (there.metadata or {})
        is_as_moved = is_moved and there.version == 1  # nothing was done to it since
        if ours == theirs:
            return State.SAME, there
        if is_as_moved and theirs.items[: len(ours.items)] == ours.items:
            return State.BEHIND, there
        went_on = not is_as_moved and ours.items[: len(theirs.items)] == theirs.items
        return (State.AHEAD if went_on and (is_moved or theirs.items) else State.APART), there

    async def _replace(self, there: Conversation, record: ConversationRecord) -> None:
        uow = self._store.unit_of_work()
        async with uow:
            await update_conversation(  # locks it, or raises ConcurrentUpdate
                uow, conversation_id=there.id, metadata=None, expected_version=there.version
            )
            await delete_conversation(uow, conversation_id=there.id)
            await import_conversations(uow, records=[record])


async def _by_session(rows: AsyncIterator[Row]) -> AsyncIterator[tuple[list[Row], int]]:
    """Give the rows of each session and their size; of one that is too large, the first ones."""
    found: list[Row] = []
    size = 0
    async for row in rows:
        if found and row.key != found[0].key:
            yield found, size
            found, size = [], 0
        size += _BYTES_OF_A_ROW + len((row.data or "").encode(errors="surrogatepass"))
        if not found or size <= LARGEST:
            found.append(row)
    if found:
        yield found, size


def _counts(receipt: ImportReceipt) -> str:
    sessions = _counted(receipt.conversations, "session")
    return f"{sessions} with {_counted(receipt.messages, 'item')}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _tell(receipt: ImportReceipt) -> None:
    print(f"  {_counts(receipt)} so far", file=sys.stderr)


# The command line --------------------------------------------------------------------------------


class Users:
    """Whose sessions they are: of one user, or as a CSV file of session_id,user_id says."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._one: str | None = options.user_id
        self._each: dict[str, str] = {}
        if options.users is not None:
            with Path(options.users).open(encoding="utf-8-sig", newline="") as lines:  # BOM or not
                self._each = {row[0]: row[1] for row in csv.reader(lines) if len(row) > 1}

    def __getitem__(self, session_id: str) -> str:
        user_id = self._one or self._each.get(session_id)
        if user_id is None:
            raise LookupError("no user is named for it")
        return user_id


def record_of(session_id: str, user_id: str, source: str) -> ConversationRecord:
    """Return a record without messages."""
    return {"user_id": user_id, "session_id": session_id, "source": source, "messages": []}


def url_of(source: str) -> URL:
    """Return a source that is a URL. Raises: UnreadableError; part of a password would be told."""
    with suppress(ValueError):  # of a port that is no number, which it quotes
        url = make_url(source)
        if "@" not in (url.host or ""):
            return url
    reason = "the URL has no number for a port, or more than one @: "
    raise UnreadableError(f"{reason}write @ : / ? # percent-encoded in its password")


def libpq_of(source: str) -> str:
    """Return a source that libpq reads. Raises: UnreadableError, for the same reason."""
    try:
        check_connection_string(source)
    except StoreMisconfigured as error:
        raise UnreadableError(str(error)) from None
    return source


def existing(path: str | None) -> Path:
    """Return the path of a file. Raises: FileNotFoundError; SQLite would make one."""
    if path is None or not Path(path).exists():
        is_told = path is not None and "password" not in path
        raise FileNotFoundError(f"there is no file {path}" if is_told else "there is no such file")
    return Path(path)


def utc(time: Any) -> datetime | None:
    """Return a time of a database that keeps UTC, or an aware one; None for what is no time."""
    moment = time
    with suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(time)
    if not isinstance(moment, datetime):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def parser(description: str, *, has_users: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options of all scripts."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--dsn", help="where to; without it CONVERSATION_STORE_DSN says")
    schema = os.environ.get("CONVERSATION_STORE_SCHEMA", "operational")
    made.add_argument("--schema", default=schema, help="the schema of the store")
    made.add_argument("--check", action="store_true", help="move nothing, compare only")
    if not has_users:
        whose = made.add_mutually_exclusive_group(required=True)
        whose.add_argument("--user-id", help="the user whose sessions they all are")
        whose.add_argument(
            "--users", metavar="FILE", help="CSV of session_id,user_id: who has which"
        )
    return made


def main(
    options: argparse.Namespace,
    peer: Callable[[], AbstractAsyncContextManager[Peer]],
    errors: Iterable[type[Exception]] = (),
) -> None:
    """Move, compare, say it and exit: 0 if all is the same, else 1."""
    expected: tuple[type[Exception], ...] = (
        *(ConversationStoreError, OSError, ImportError, psycopg.Error, sqlite3.Error),
        *(UnreadableError, UnicodeDecodeError),
        *errors,
    )
    dsn = options.dsn or os.environ.get("CONVERSATION_STORE_DSN")
    if not dsn:
        sys.exit("Name the store: --dsn, or CONVERSATION_STORE_DSN.")
    try:
        # https://www.psycopg.org/psycopg3/docs/advanced/async.html: not the proactor of Windows
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            well = runner.run(_main(options, dsn, peer))
    except KeyboardInterrupt:
        sys.exit("Stopped. What was moved stays; run this again to go on.")
    except expected as error:
        sys.exit(_told(error))
    sys.exit(0 if well else 1)


def _told(error: Exception) -> str:
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    if not isinstance(error, ConversationStoreError):
        return f"The sessions cannot be read: {text or type(error).__name__}"
    moved = error.imported or ImportReceipt()
    if moved.conversations:
        text += f"; moved before that: {_counts(moved)}. Run this again to go on"
    return text


async def _main(
    options: argparse.Namespace, dsn: str, peer: Callable[[], AbstractAsyncContextManager[Peer]]
) -> bool:
    async with (
        peer() as opened,
        ConversationStore.connect(dsn, schema=options.schema, min_size=1) as store,
    ):
        move = Move(opened, store)
        if not options.check:
            print(await move.run())
            for text, times in opened.notes.items():
                print(f"note: {_counted(times, 'item')} {text}")
        said, well = await move.check()
        print(said)
        return well
