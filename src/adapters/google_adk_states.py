"""The state that sessions of Google ADK share: of an app, and of a user of it.

Each is the metadata of a conversation of its own. It is merged key by key: a writer who meets
another's change takes it in, so that no key of either is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from attrs import evolve, frozen

from ..domain.conversation import Conversation, ConversationChanges, NewConversation
from ..domain.errors import ConcurrentUpdate, ConversationNotFound, DuplicateSession
from ..domain.json_object import JsonObject
from ..domain.message import Message
from ..domain.unit import Pending
from ..service_layer.conversations import find_conversation
from ..service_layer.unit_of_work import AsyncUnitOfWork
from .google_adk_layout import APP_USER, STATE_SOURCE, SplitState, state_name, state_of, with_state
from .store_thread import Store

T = TypeVar("T")

_Changed: TypeAlias = Pending[Conversation] | Pending[tuple[Conversation, list[Message]]]


@frozen(kw_only=True)
class SharedState:
    """State of an app or of a user, as it was read."""

    owner: str
    """The user whose conversation holds it."""
    name: str
    """The session_id of that conversation."""
    conversation: Conversation | None = None
    """None while there is no such state."""

    @property
    def values(self) -> dict[str, Any]:
        """A copy of the state; keys are without prefix."""
        return state_of(None if self.conversation is None else self.conversation.metadata)

    async def read(self, store: Store) -> SharedState:
        """Return it as it is now. Round trips: 1."""
        unit = store.unit_of_work(user_id=self.owner)
        return evolve(self, conversation=await find_conversation(unit, session_id=self.name))

    def change(self, uow: AsyncUnitOfWork, delta: Mapping[str, Any]) -> _Changed:
        """Register new values for some keys; refused where it is not as it was read."""
        if self.conversation is None:
            return uow.conversations.add(self.started_with(with_state(None, delta)))
        metadata = with_state(self.conversation.metadata, self.values | dict(delta))
        return uow.conversations.update(
            self.conversation.id,
            ConversationChanges(metadata=metadata),
            expected_version=self.conversation.version,
        )

    def started_with(self, metadata: JsonObject | None) -> NewConversation:
        """Return the conversation that holds it, where there is none."""
        return NewConversation(
            user_id=self.owner, session_id=self.name, source=STATE_SOURCE, metadata=metadata
        )


Shared: TypeAlias = tuple[SharedState, SharedState]
"""The state of an app, and that of a user of it; they are locked in this order."""


async def read_shared(store: Store, app_name: str, user_id: str) -> Shared:
    """Return what the sessions of a user share. Round trips: 2."""
    name = state_name(app_name)
    app = await SharedState(owner=APP_USER, name=name).read(store)
    return app, await SharedState(owner=user_id, name=name).read(store)


async def write_shared(
    store: Store,
    shared: Shared,
    change: SplitState,
    own: Callable[[AsyncUnitOfWork], T],
    *,
    about: int | str,
) -> tuple[T, Shared]:
    """Change shared state, and do what `own` registers, in one unit of work.

    The unit acts for the user alone, unless state of the app changes. Shared state that is not as
    it was read is locked, read and changed as it is then: nobody comes between.

    Args:
        store: the store.
        shared: what is shared, as it was read.
        change: what to set.
        own: registers what is done to the session itself.
        about: the id of the session's conversation, or its session_id where it is to be started;
            refusals that are about that are raised.

    Returns: what `own` returned, and what is shared now.

    Round trips: 1; at most 7 more where shared state that changes is not as it was read.
    """
    deltas = change.app, change.user
    user_id = None if change.app else shared[1].owner
    is_to_be_locked = False
    while True:
        try:
            async with store.unit_of_work(user_id=user_id) as uow:
                if is_to_be_locked:
                    changing = [state for state, delta in zip(shared, deltas, strict=True) if delta]
                    shared = _now(shared, await _locked(uow, changing))
                pending = [
                    state.change(uow, delta)
                    for state, delta in zip(shared, deltas, strict=True)
                    if delta
                ]
                done = own(uow)
        except (ConcurrentUpdate, ConversationNotFound) as refusal:
            if refusal.conversation_id == about:
                raise
        except DuplicateSession as refusal:
            if refusal.session_id == about:
                raise
        else:
            return done, _now(shared, [await _conversation(each) for each in pending])
        is_to_be_locked = True


async def _locked(uow: AsyncUnitOfWork, states: list[SharedState]) -> list[Conversation]:
    """Return the conversations as they are until the unit ends; start them where there are none."""
    started = [uow.conversations.get_or_add(state.started_with(None)) for state in states]
    found = [await _conversation(each) for each in started]
    locked = [
        # To set what is there already locks the row, and changes the version alone.
        uow.conversations.update(each.id, ConversationChanges(rescue_id=each.rescue_id))
        for each in found
    ]
    return [await each for each in locked]


async def _conversation(pending: Pending[Any]) -> Conversation:
    result: Conversation | tuple[Conversation, object] = await pending
    return result[0] if isinstance(result, tuple) else result


def _now(shared: Shared, conversations: list[Conversation]) -> Shared:
    by_owner = {each.user_id: each for each in conversations}
    app, user = (
        evolve(state, conversation=by_owner.get(state.owner, state.conversation))
        for state in shared
    )
    return app, user
