"""The port of removals in batches, a part of the repository of conversations."""

from __future__ import annotations

from abc import ABC, abstractmethod

from attrs import evolve

from .conversation import MAX_ID
from .errors import InvalidConversation
from .removal import RemovalCondition, RemovedBatch
from .text import check_name
from .unit import Pending, Repository, Write, check_conversation_id


class RemovingRepository(Repository, ABC):
    """What a repository of conversations knows of removing them in batches."""

    def remove_part(
        self, conversation_id: int, only: RemovalCondition | None = None
    ) -> Pending[RemovedBatch]:
        """Register the removal of a conversation, or of the end of a long one.

        One of at most 2,000 messages goes whole. A longer one is archived, whatever its status
        was, loses its newest messages, and is told as `left`; where
        others changed it at the same moment it loses none yet. It is not touched, nor told, where
        it does not meet the condition once it is locked.

        Without a condition it is done again where its answer was lost; what that answer would have
        told is then not known. With one a lost answer is a CommitOutcomeUnknown, so that each
        receipt tells all that went.
        """
        conversation_id = check_conversation_id(conversation_id)
        condition = None if only is None else self._condition(only)
        return self._unit.register(self._remove_part(conversation_id, condition))

    def remove_some(
        self, only: RemovalCondition, after: str | None = None
    ) -> Pending[RemovedBatch]:
        """Register the removal of the next conversations that meet a condition, a batch of them.

        It waits for nobody: those that others hold, and those that are longer than a batch, are
        told as `left`, to be removed by `remove_part`. `after` is the `next_place` of the batch
        before, of the same condition; None begins with the first.
        """
        condition = self._condition(only)
        return self._unit.register(self._remove_some(condition, _place(after, condition)))

    async def find_removable(
        self, only: RemovalCondition, after: str | None = None
    ) -> RemovedBatch:
        """Read which conversations `remove_some` would remove next, as if they were gone."""
        condition = self._condition(only)
        place = _place(after, condition)
        await self._unit.before_read()
        return await self._find_removable(condition, place)

    def _condition(self, only: RemovalCondition) -> RemovalCondition:
        """Return a condition of removal that goes no further than the unit does."""
        if only.user_id is None and self._unit.user_id is None:
            return only
        return evolve(only, user_id=self._owner(only.user_id))

    @abstractmethod
    def _remove_part(
        self, conversation_id: int, only: RemovalCondition | None
    ) -> Write[RemovedBatch]: ...

    @abstractmethod
    def _remove_some(self, only: RemovalCondition, after: str | None) -> Write[RemovedBatch]: ...

    @abstractmethod
    async def _find_removable(self, only: RemovalCondition, after: str | None) -> RemovedBatch: ...


def _place(after: str | None, only: RemovalCondition) -> str | None:
    """Return the place after which a batch begins: a session of the user, or an id."""
    if after is None:
        return None
    after = check_name(after, "after", InvalidConversation)
    if only.user_id is None and not (
        after.isascii() and after.isdecimal() and int(after) <= MAX_ID
    ):
        raise InvalidConversation(field="after", reason="is no next_place of this condition")
    return after
