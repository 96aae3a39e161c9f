"""Service functions that remove conversations for good, a batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Concatenate, Final, ParamSpec, TypeVar

from ..domain.errors import ConversationStoreError, InvalidConversation
from ..domain.receipt import ErasureReceipt
from ..domain.removal import RemovalCondition, RemovedBatch, check_time
from ..domain.repository import ConversationRepository
from ..domain.unit import Pending
from .observed import observed
from .outcome import Outcome
from .unit_of_work import AsyncUnitOfWork

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_PAUSE: Final = 0.5
"""Seconds that a removal pauses at most between two batches."""

_Batches = AsyncGenerator[RemovedBatch]


@observed
async def delete_conversation(
    uow: AsyncUnitOfWork,
    *,
    conversation_id: int,
    progress: Callable[[ErasureReceipt], None] | None = None,
) -> ErasureReceipt:
    """Remove a conversation with all its messages; one that is gone already is success.

    One of at most 2,000 messages goes in one transaction. A longer one is archived and loses its
    newest messages, 2,000 in a transaction, and goes with the last ones. So what others read of it
    meanwhile has no gap. Interrupted it is gone on with by calling again.
    Inside an open block all of it belongs to that block's transaction.

    Args:
        uow: the unit of work.
        conversation_id: which.
        progress: called after each batch with what was removed so far.

    Returns: what was removed: nothing where the conversation was not there. A batch whose answer
    was lost is asked for again; what it removed is then not in the receipt.

    Raises: InvalidConversation for an id beyond 64 bits. `erased` of every ConversationStoreError
    raised here says what was removed before it.

    Round trips: 1 for every 2,000 messages, and at least 1.
    """
    return await _removed(_part_by_part(uow, conversation_id), progress)


@observed
async def erase_user(
    uow: AsyncUnitOfWork,
    *,
    user_id: str | None = None,
    progress: Callable[[ErasureReceipt], None] | None = None,
) -> ErasureReceipt:
    """Remove all that a user has, for good.

    In batches, each a transaction of its own, unless the unit is inside an open block: then all of
    them belong to that block's transaction. A batch removes at most 500 conversations or about
    2,000 messages and waits for nobody; a conversation that others are writing to is waited for
    alone, and a longer one goes as `delete_conversation` says. After a batch it pauses for as long
    as that took. Interrupted it is gone on with by calling again.

    It ends with a batch that found all that the user had when that batch began, and removed it.
    What the user starts after that stays, so keep the user out first.

    Args:
        uow: the unit of work.
        user_id: whose; may be left out where the unit acts for one user.
        progress: called after each batch with what was removed so far.

    Returns: what was removed.

    Raises: InvalidConversation. `erased` of every ConversationStoreError raised here says what was
    removed before it; of a CommitOutcomeUnknown, one batch more may be gone.

    Round trips: 1 for every batch. A user of one batch takes 1.
    """
    owner = uow.user_id if user_id is None else user_id
    if owner is None:
        raise InvalidConversation(field="user_id", reason="is missing")
    return await _removed(_all_of(uow, RemovalCondition(user_id=owner)), progress)


@observed
async def purge_conversations(
    uow: AsyncUnitOfWork,
    *,
    inactive_since: datetime,
    status: str | None = None,
    source: str | None = None,
    user_id: str | None = None,
    dry_run: bool = False,
    progress: Callable[[ErasureReceipt], None] | None = None,
) -> ErasureReceipt:
    """Remove the conversations in which nothing has happened since a time.

    In batches, as `erase_user` removes them. Whether a conversation is to go is judged again when
    it is locked: one that became active meanwhile stays. One that is longer than a batch goes
    whole once it was begun. Interrupted it is gone on with by calling again; what is left of a long
    conversation is archived then, so a purge with another `status` goes by it.

    Args:
        uow: the unit of work.
        inactive_since: those go whose last_activity lies before it; with a time zone. With a time
            to come all go that meet the rest.
        status: only those of this status.
        source: only those that came from there, as `start_conversation` was told.
        user_id: only those of this user; None is all that the unit may see.
        dry_run: whether to remove nothing, and to count what would go.
        progress: called after each batch with what was removed, or counted, so far.

    Returns: what was removed, or would be.

    Raises: InvalidConversation for a time without a time zone, for no such status, for what can be
    no source. `erased` of every ConversationStoreError raised here says what was removed before it;
    of a CommitOutcomeUnknown, one batch more may be gone.

    Round trips: 1 for every batch, and for every 2,000 conversations that are looked at.
    """
    only = RemovalCondition(
        user_id=uow.user_id if user_id is None else user_id,
        inactive_since=check_time(inactive_since),
        status=status,
        source=source,
    )
    return await _removed(_found(uow, only) if dry_run else _walk(uow, only), progress)


async def _removed(
    batches: _Batches, progress: Callable[[ErasureReceipt], None] | None
) -> ErasureReceipt:
    """Add up what batches remove, and tell of each; there is one batch at least."""
    erased: ErasureReceipt | None = None
    try:
        async with aclosing(batches):
            receipt = erased = (await anext(batches)).receipt()
            _tell(progress, receipt)
            async for batch in batches:
                receipt = erased = receipt + batch.receipt()
                _tell(progress, receipt)
    except ConversationStoreError as error:
        error.erased = erased
        raise
    return receipt


def _tell(progress: Callable[[ErasureReceipt], None] | None, receipt: ErasureReceipt) -> None:
    if progress is not None:
        progress(receipt)


async def _all_of(uow: AsyncUnitOfWork, only: RemovalCondition) -> _Batches:
    """Walk along all that a user has until one batch finds the beginning and the end.

    What the user starts meanwhile may lie before the place where the walk is.
    """
    while True:
        number = waits = 0
        async with aclosing(_walk(uow, only)) as walk:
            async for batch in walk:
                yield batch
                number += 1
                waits += len(batch.left)
        if number == 1 and not waits:
            return


async def _walk(uow: AsyncUnitOfWork, only: RemovalCondition) -> _Batches:
    """Remove what meets a condition, batch by batch; what was left by one, after it."""
    pace, place = _Pace(uow), None
    while True:
        batch = await pace.keep(ConversationRepository.remove_some, only, place)
        yield batch
        for conversation_id in batch.left:
            async with aclosing(_part_by_part(uow, conversation_id, only, pace)) as parts:
                async for part in parts:
                    yield part
        place = batch.next_place
        if place is None:
            return


async def _part_by_part(
    uow: AsyncUnitOfWork,
    conversation_id: int,
    only: RemovalCondition | None = None,
    pace: _Pace | None = None,
) -> _Batches:
    """Remove a conversation from its end on; what meets the condition at first is removed whole."""
    pace = pace or _Pace(uow)
    while True:
        batch = await pace.keep(ConversationRepository.remove_part, conversation_id, only)
        yield batch
        if not batch.left:
            return
        if only is not None:
            only = RemovalCondition(user_id=only.user_id)


async def _found(uow: AsyncUnitOfWork, only: RemovalCondition) -> _Batches:
    """Read what meets a condition."""
    place = None
    while True:
        async with uow:
            batch = await uow.conversations.find_removable(only, place)
        yield batch
        place = batch.next_place
        if place is None:
            return


class _Pace:
    """Leaves others half of the time: a batch is followed by a pause as long as it took."""

    def __init__(self, uow: AsyncUnitOfWork) -> None:
        self._uow = uow
        self._pause = 0.0

    async def keep(
        self,
        register: Callable[Concatenate[ConversationRepository, P], Pending[T]],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Pause, then send a batch; not where a block or a host's transaction holds its locks."""
        if self._pause:
            await asyncio.sleep(min(self._pause, LONGEST_PAUSE))
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self._uow as uow:
            pending = register(uow.conversations, *arguments, **options)
        done = await pending
        is_over = uow.outcome is Outcome.COMMITTED and not uow.is_in_host_transaction
        self._pause = clock() - began if is_over else 0.0
        return done
