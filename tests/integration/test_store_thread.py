"""A store in a thread of its own: it hangs nobody, and what ended there has really ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import NoReturn

import psycopg
import pytest
from store_fixtures import open_store

from conversation_store import (
    ConversationStore,
    MessageDraft,
    Role,
    StoreClosed,
    UnitOfWorkMisuse,
)
from conversation_store.adapters.history import History
from conversation_store.adapters.store_thread import StoreThread

SECONDS = 10.0
"""In which all that could hang has to end."""


@pytest.fixture
def thread() -> Iterator[StoreThread]:
    """Give a store in memory in a thread."""
    with StoreThread(ConversationStore.in_memory()) as thread:
        yield thread


def in_time(call: Callable[[], object]) -> BaseException | None:
    """Do in a thread what could hang, and return what it raises."""
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)
        else:
            ended.append(None)

    threading.Thread(target=work, daemon=True).start()
    for _ in range(int(SECONDS * 100)):
        if ended:
            return ended[0]
        threading.Event().wait(0.01)
    pytest.fail("it hangs")


def history(thread: StoreThread) -> History:
    """Return a history in a thread."""
    return History("s", store=thread, user_id="ada", source="test")


def said(*texts: str) -> list[MessageDraft]:
    """Return what a user says."""
    return [MessageDraft(role=Role.USER, content=text) for text in texts]


def test_who_is_in_its_loop_is_told_to_await(thread: StoreThread) -> None:
    """Waiting there would hold the loop for ever; awaiting works."""
    there = history(thread)

    async def wait() -> object:
        return there.wait_for(there.read())

    async def leave() -> None:
        thread.__exit__(None, None, None)

    for work in (wait, leave):
        assert isinstance(in_time(lambda w=work: thread.wait_for(w())), UnitOfWorkMisuse)  # type: ignore[misc]

    async def add() -> None:
        await there.do(there.add(said("a")))

    assert in_time(lambda: thread.wait_for(add())) is None
    assert len(there.wait_for(there.read())) == 1


def test_it_is_entered_once(thread: StoreThread) -> None:
    """A second time is misuse, and harms nothing; so is once more after it was left."""
    with pytest.raises(UnitOfWorkMisuse), thread:
        pass
    there = history(thread)
    there.wait_for(there.add(said("a")))
    with StoreThread(ConversationStore.in_memory()) as other:
        pass
    before = threading.active_count()
    with pytest.raises(UnitOfWorkMisuse), other:
        pass
    assert threading.active_count() == before


async def nothing() -> None:
    """Do nothing."""


def test_what_comes_too_early_or_too_late() -> None:
    """It is told so, at once."""
    thread = StoreThread(ConversationStore.in_memory())
    assert isinstance(in_time(lambda: thread.wait_for(nothing())), StoreClosed)
    with thread:
        pass
    assert isinstance(in_time(lambda: thread.wait_for(nothing())), StoreClosed)
    assert isinstance(in_time(lambda: asyncio.run(thread.do(nothing()))), StoreClosed)


def test_left_while_others_work(dsn: str, migrated: set[str]) -> None:
    """What they began ends as it would have, of several steps each; nobody waits for ever."""

    async def prepare() -> None:
        async with open_store(dsn, "operational", migrated):
            pass

    asyncio.run(prepare())
    thread = StoreThread(ConversationStore.connect(dsn, min_size=1, max_size=4))
    with ThreadPoolExecutor() as others, psycopg.connect(dsn) as locking:
        with thread:
            there = history(thread)
            locking.execute("LOCK operational.ai_conversations")
            began = [
                others.submit(lambda n=number: there.wait_for(there.add(said(str(n)))))  # type: ignore[misc]
                for number in range(4)
            ]
            wait_until_blocked(dsn)
            others.submit(roll_back_later, locking)
        assert [each.result(SECONDS) for each in began] == [None] * 4
        counts = locking.execute("SELECT message_count FROM operational.ai_conversations")
        assert counts.fetchall() == [(4,)]


def roll_back_later(connection: psycopg.Connection) -> None:
    """Let others wait a little longer."""
    threading.Event().wait(0.2)
    connection.rollback()


def wait_until_blocked(dsn: str) -> None:
    """Wait until somebody waits for a lock."""
    query = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(query).fetchone() == (False,):
            threading.Event().wait(0.01)


class Slow:
    """Work that takes its time to end when it is cancelled."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = 0

    async def work(self) -> None:
        """Wait until it is cancelled, and a little longer."""
        self.began.set()
        try:
            await asyncio.sleep(SECONDS)
        finally:
            await asyncio.sleep(0.1)
            self.ended += 1


def test_who_is_cancelled_goes_on_when_the_work_has_ended(thread: StoreThread) -> None:
    """So that it can look at what was stored; cancelled twice it is the same."""
    slow = Slow()

    async def cancel(times: int) -> None:
        slow.began.clear()
        task = asyncio.create_task(thread.do(slow.work()))
        await asyncio.to_thread(slow.began.wait)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def time_out() -> None:
        slow.began.clear()
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as others:
            others.create_task(end(limit))
            await thread.do(slow.work())

    async def end(limit: asyncio.Timeout) -> None:
        await asyncio.to_thread(slow.began.wait)
        limit.reschedule(asyncio.get_running_loop().time())

    asyncio.run(cancel(1))
    assert slow.ended == 1
    with pytest.raises(TimeoutError):
        asyncio.run(time_out())
    assert slow.ended == 2


def test_who_is_interrupted_goes_on_when_the_work_has_ended(thread: StoreThread) -> None:
    """As by Ctrl-C while a call that is not async waits."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    slow = Slow()

    def alarm() -> None:
        slow.began.wait()
        threading.Event().wait(0.1)  # for who waits for it
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    threading.Thread(target=alarm).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.wait_for(slow.work())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert slow.ended == 1


def test_a_forked_process_is_told_that_it_needs_its_own() -> None:
    """The thread is not there: neither a call nor leaving waits for it."""
    script = """
import os, warnings
from conversation_store import ConversationStore, StoreClosed
from conversation_store.adapters.history import History
from conversation_store.adapters.store_thread import StoreThread
warnings.simplefilter("ignore")
with StoreThread(ConversationStore.in_memory()) as thread:
    history = History("s", store=thread, user_id="ada", source="test")
    child = os.fork() == 0
    try:
        said = history.wait_for(history.read())
    except StoreClosed:
        said = "closed"
if child:
    print(said, flush=True)
    os._exit(0)
os.wait()
print(said)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout == "closed\n[]\n"
