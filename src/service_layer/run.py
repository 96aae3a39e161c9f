"""A unit of work of any kind, tried again as a whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..domain.errors import ConversationStoreError
from .observed import ObservedUnitOfWork
from .outcome import Outcome
from .retry import Retry, try_again, was_given_up
from .unit_of_work import AsyncUnitOfWork

T = TypeVar("T")


async def run_unit(
    new_unit: Callable[[], AsyncUnitOfWork],
    work: Callable[[AsyncUnitOfWork], Awaitable[T]],
    retry: Retry,
) -> T:
    """Do work in one unit of work, and again in a new one when the server gave it up.

    For units that read, decide and write: a unit that is a single flush is tried again by itself.
    The work is done inside an open block, so all of it is one unit; it may be done several times,
    so what it does outside the unit must bear that.

    Args:
        new_unit: gives a new unit of work for each try.
        work: what to do; it is given the unit, entered. Its result is returned.
        retry: how often and how long.

    Raises: what the work or leaving its unit raised, in the last try; `tried` holds the errors of
    the tries before. Tried again are TransactionAborted and StoreUnavailable, and errors of the
    driver that mean these, raised by SQL of the host's; nothing of the unit is stored then. A unit
    whose COMMIT was lost is never done again unless it is certain that it is not stored.
    """
    outcome = Outcome.NOT_STARTED
    is_again = False

    async def once() -> T:
        nonlocal outcome, is_again
        uow = new_unit()
        if is_again and isinstance(uow, ObservedUnitOfWork):
            uow.observer.tried_again()
        is_again = True
        try:
            async with uow:
                return await work(uow)
        except Exception as error:
            outcome = uow.outcome
            meaning = uow.meaning(error)
            if meaning is None or meaning is error or not is_worth(meaning):
                raise
            raise meaning from error

    def is_worth(error: ConversationStoreError) -> bool:
        may_be_stored = outcome in {Outcome.COMMITTED, Outcome.UNKNOWN}
        # One that was tried was tried by the unit itself, as often as it may be.
        return was_given_up(error) and not error.tried and not may_be_stored

    try:
        return await once()
    except ConversationStoreError as error:
        if not is_worth(error):
            raise
        return await try_again(retry, error, once, is_worth)
