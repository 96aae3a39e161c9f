"""What is attacked: the conversations of one user, beside those of the attacker.

All names of the victim begin with her user_id, and all ids are known. The same names and ids of
somebody who never was are what an attack must not be told apart from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen
from store_fixtures import draft, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConversationStore,
    Message,
    append_messages,
    archive_conversation,
    close_conversation,
    list_conversations,
    messages_after,
    start_conversation,
    update_conversation,
)
from conversation_store.domain.page import ConversationCursor

ALICE: Final = "alice-the-first"
MALLORY: Final = "mallory-the-second"
NOBODY: Final = "nobody-who-never-was"

STATES: Final = ("active", "closed", "archived", "empty")
"""The conversations of the victim: three with messages, one without."""
MALLORYS: Final = ("own", "shared")
"""Those of the attacker; one has a session_id that the victim has, too."""
SHARED: Final = "shared by both"

BEHIND_POLICIES: Final = "attacks behind policies"
"""The schema that has row security."""

_NEVER_GIVEN: Final = 4_000_000_000_000


@frozen(kw_only=True)
class Target:
    """Whose data an attack is aimed at, and by what that is named."""

    user_id: str
    conversations: Mapping[str, int]
    """By state."""
    messages: Mapping[str, int]
    """The first message of each."""
    versions: Mapping[str, int]
    cursors: Mapping[str | None, str]
    """Of the lists of each status, and of the whole list."""
    by: str = MALLORY
    """Who attacks."""

    def session(self, state: str) -> str:
        """Return the session_id of a conversation."""
        return f"{self.user_id}: {state}"

    @property
    def start(self) -> str:
        """The request_id that each conversation was started with."""
        return f"{self.user_id}: start"

    @property
    def turn(self) -> str:
        """The request_id of the second turn of each."""
        return f"{self.user_id}: turn"

    @property
    def names(self) -> dict[int, str]:
        """What its ids are called in an answer."""
        named = {id_: f"<{state}>" for state, id_ in self.conversations.items()}
        return named | {id_: f"<message of {state}>" for state, id_ in self.messages.items()}


def started(state: str) -> list[Any]:
    """Return the drafts that the victim's conversations were started with."""
    return [] if state == "empty" else [draft("a secret"), draft("hush", "assistant")]


async def settle(store: ConversationStore) -> Target:
    """Store what the victim and the attacker have; return the victim."""
    uow = store.unit_of_work()
    ids: dict[str, int] = {}
    for state in (*STATES, SHARED):
        session = state if state == SHARED else f"{ALICE}: {state}"
        drafts = started(state)
        conversation, _ = await start_conversation(
            uow,
            user_id=ALICE,
            session_id=session,
            drafts=drafts,
            request_id=f"{ALICE}: start" if drafts else None,
        )
        if drafts:
            await append_messages(
                uow, conversation_id=conversation.id, drafts=turn(2), request_id=f"{ALICE}: turn"
            )
        await update_conversation(
            uow, conversation_id=conversation.id, rescue_id="a secret", metadata={"a": "secret"}
        )
        ids[state] = conversation.id
    await close_conversation(uow, conversation_id=ids["closed"])
    await close_conversation(uow, conversation_id=ids["archived"])
    await archive_conversation(uow, conversation_id=ids["archived"])
    for session in MALLORYS:
        conversation, _ = await start_conversation(
            uow,
            user_id=MALLORY,
            session_id=SHARED if session == "shared" else session,
            drafts=turn(1),
        )
        await update_conversation(uow, conversation_id=conversation.id, intent_type="own")
    return await victim(uow)


async def victim(uow: AsyncUnitOfWork) -> Target:
    """Return what the victim has."""
    page = await list_conversations(uow, user_id=ALICE)
    found = {one.session_id.removeprefix(f"{ALICE}: "): one for one in page.conversations}
    firsts: dict[str, Message] = {}
    for state, one in found.items():
        for message in await messages_after(uow, conversation_id=one.id, position=0, limit=1):
            firsts[state] = message
    cursors: dict[str | None, str] = {}
    for status in (None, "active"):
        first = await list_conversations(uow, user_id=ALICE, status=status, limit=1)
        assert first.next_cursor is not None
        cursors[status] = first.next_cursor
    return Target(
        user_id=ALICE,
        conversations={state: one.id for state, one in found.items()},
        messages={state: one.id for state, one in firsts.items()},
        versions={state: one.version for state, one in found.items()},
        cursors=cursors,
    )


def nobody(target: Target) -> Target:
    """Return somebody who never was, like a target in all but that."""
    ids = {state: _NEVER_GIVEN + n for n, state in enumerate(target.conversations)}
    newest = max(target.messages.values())
    cursors: dict[str | None, str] = {}
    for status in target.cursors:
        place = ConversationCursor.decode(target.cursors[status], target.user_id, status)  # type: ignore[arg-type]
        cursors[status] = place.encode(NOBODY, status)  # type: ignore[arg-type]
    return Target(
        user_id=NOBODY,
        conversations=ids,
        messages={state: _NEVER_GIVEN + newest + n for n, state in enumerate(target.messages)},
        versions=target.versions,
        cursors=cursors,
        by=target.by,
    )
