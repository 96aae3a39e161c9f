"""How often something is tried again, how long, and what is told of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conversation_store import (
    ConversationNotFound,
    ConversationStoreError,
    Retry,
    StoreClosed,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
)
from conversation_store.service_layer.retry import try_again

QUICK = Retry(attempts=5, first_pause=0, longest_pause=0)


class Work:
    """Work that fails as it is told, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.done = 0

    async def __call__(self) -> str:
        """Fail with the next error, or succeed."""
        self.done += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def aborted(reason: str = "a deadlock") -> TransactionAborted:
    """Return an error that is worth another try."""
    return TransactionAborted(reason=reason, sqlstate="40P01")


async def test_it_is_tried_until_it_succeeds() -> None:
    """What failed before is forgotten."""
    work = Work(aborted(), StoreUnavailable(reason="gone"))
    assert await try_again(QUICK, aborted(), work) == "done"
    assert work.done == 3


async def test_the_last_error_knows_those_before() -> None:
    """It is tried as often as is said, and each error is told, in order."""
    errors = [aborted(str(number)) for number in range(10)]
    work = Work(*errors[1:])
    with pytest.raises(TransactionAborted) as caught:
        await try_again(QUICK, errors[0], work)
    assert caught.value is errors[4]
    assert caught.value.tried == tuple(errors[:4])
    assert work.done == 4
    [note] = caught.value.__notes__
    assert note.startswith("tried 5 times; before: TransactionAborted: 0 [40P01]; ")


@pytest.mark.parametrize(
    "error",
    [
        ConversationNotFound(conversation_id=1),
        StoreTimeout(reason="a lock"),
        StoreClosed(reason="closed"),
        StoreMisconfigured(reason="no table"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_not_worth_another_try(error: ConversationStoreError) -> None:
    """It is raised at once, and says what was tried before."""
    first = aborted()
    work = Work(error)
    with pytest.raises(type(error)) as caught:
        await try_again(QUICK, first, work)
    assert caught.value is error
    assert caught.value.tried == (first,)
    work = Work()
    with pytest.raises(type(error)):
        await try_again(QUICK, error, work)
    assert work.done == 0


async def test_one_attempt_is_no_other_attempt() -> None:
    """The error goes on as it came."""
    error = aborted()
    with pytest.raises(TransactionAborted) as caught:
        await try_again(Retry(attempts=1), error, Work())
    assert caught.value is error
    assert (error.tried, getattr(error, "__notes__", [])) == ((), [])


async def test_errors_of_the_caller_go_on() -> None:
    """What is no error of the store is not its to try again."""
    with pytest.raises(KeyError):
        await try_again(QUICK, aborted(), Work(KeyError("mine")))


async def test_no_try_begins_after_the_deadline() -> None:
    """Also where attempts are left."""
    work = Work(*[aborted() for _ in range(1000)])
    retry = Retry(attempts=1000, deadline=0.05, first_pause=0.01, longest_pause=0.01)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TransactionAborted):
        await try_again(retry, aborted(), work)
    assert work.done < 999
    assert loop.time() - began < 5


def test_pauses_grow_and_are_random() -> None:
    """The second try follows at once; the limit of the pauses doubles and ends."""
    retry = Retry(first_pause=0.1, longest_pause=0.5)
    assert retry.pause(1) == 0
    for failures, most in ((2, 0.1), (3, 0.2), (4, 0.4), (5, 0.5), (1000, 0.5)):
        pauses = [retry.pause(failures) for _ in range(200)]
        assert all(0 <= pause <= most for pause in pauses)
        assert max(pauses) > most / 2 > min(pauses)


@pytest.mark.parametrize(
    "values",
    [
        {"attempts": 0},
        {"attempts": 1001},
        {"attempts": 2.5},
        {"attempts": "3"},
        {"deadline": -1},
        {"deadline": float("nan")},
        {"deadline": 86_401},
        {"longest_pause": float("inf")},
        {"first_pause": 2.0},
        {"first_pause": -0.1},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    """The error names the value and its range."""
    with pytest.raises(StoreMisconfigured, match=f"retry: {next(iter(values))} must be"):
        Retry(**values)
