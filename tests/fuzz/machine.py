"""Random programs of units of work, run on the twin and on PostgreSQL side by side."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from itertools import permutations
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from conversation_store import AsyncUnitOfWork, export_conversations, messages_after

from . import arguments as of
from .calls import IMPORTS, METHODS, READS, REGISTERED, SERVICES, Call
from .hands import MOST_EXPORTS, Hand, HostError
from .server import MANNERS, Manner, Server
from .world import World

HANDS: Final = 3
DEEPEST: Final = 4
FAR_OFF: Final = 600.0
"""Seconds: the timeout of a unit that ends in time."""
OFTEN: Final = 6
"""Of so many calls one is made although it will be misuse."""
TIMES: Final = {
    **dict.fromkeys(("append_messages", "messages.append", "conversations.set_status"), 8),
    **dict.fromkeys(("delete_conversation", "erase_user", "purge_conversations"), 1),
    **dict.fromkeys(("conversations.remove", "conversations.remove_part"), 1),
    "conversations.remove_some": 1,
}
"""How often some calls are made, where others are made three times."""
HOMES: Final = (("ada", "s-1"), ("ada", "s-2"), ("bob", "s-1"))
"""Of the conversations that are there from the beginning."""
ENDS: Final = ("leave", "fail", "roll back")

hands = st.integers(0, HANDS - 1)
manners = st.sampled_from((*MANNERS, "pool", "pool"))


def calls(*names: str) -> of.Strategy:
    """Return calls of these functions or methods."""
    tables = {**SERVICES, **METHODS}
    return st.sampled_from(names).flatmap(
        lambda name: tables[name].map(lambda arguments: Call(name, arguments))
    )


def often(names: AbstractSet[str]) -> list[str]:
    """Return names, each as often as it is to be called: what removes seldom, so much stays."""
    return [name for name in sorted(names) for _ in range(TIMES.get(name, 3))]


two_hands = st.sampled_from(tuple(permutations(range(HANDS), 2)))
chats = st.integers(0, 3)
writes = calls(*often(SERVICES.keys() - READS))
registered = calls(*often(REGISTERED))
holding = calls("messages.append", "conversations.update", "conversations.set_status")
wanting = calls("append_messages", "update_conversation", "close_conversation", "erase_user")


class Programs(RuleBasedStateMachine):
    """Each example is a program: what some hands do, step by step, on both sides."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    server: ClassVar[Server]
    steps: ClassVar[Counter[str]]
    failures: ClassVar[list[BaseException]]
    """What ended a program; each is a difference, or a hand that is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.server, self.steps)
        self.is_lent = False
        self.has_failed = False
        self.calls_so_far = 0
        """How many calls there were."""

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.loop.run_until_complete(work)
        except BaseException as error:
            self.has_failed = True
            self.failures.append(error)
            error.add_note("\n".join(["What was done:", *self.world.done]))
            raise

    @initialize(manner=manners, patient=st.booleans())
    def begin(self, manner: Manner, patient: bool) -> None:
        """Begin with two stores, that on PostgreSQL used in one of its manners.

        Of the hands all wait for locks without end, or all but the last.
        """
        self.is_lent = manner == "lent"
        self._run(self.world.open(manner, HANDS))
        for user_id, session_id in HOMES:
            values = {"user_id": user_id, "session_id": session_id, "drafts": ()}
            self._call(0, Call("start_conversation", values))
        if not patient and self.world.hands > 1:
            self.renew(hand=HANDS - 1, user_id=None, patient=False, timeout=None)

    # Calls ------------------------------------------------------------------------------------

    def _call(self, hand: int, call: Call) -> None:
        number = hand % self.world.hands
        self._make_ready(number, call)
        scope = self.world.twin.hands[number].uow.user_id
        homes = call.meets_at(self.world.twin.names, scope)
        if self.is_lent and "export" in call.name:
            return  # it would hold the only connection; see `export_all`
        if self.world.may(number, homes):
            self._run(self.world.do(number, call.name, call, homes))

    def _make_ready(self, number: int, call: Call) -> None:
        """Leave blocks that are not live, and enter one for a repository; now and then do not."""
        self.calls_so_far += 1
        if self.calls_so_far % OFTEN == 0:
            return
        while self.world.is_spoilt(number) and self.world.may(number):
            self._do(number, "roll back", lambda hand: hand.uow.rollback())
            self._do(number, "leave", _leave)
        if call.name in METHODS and not self.world.depth(number):
            self._do(number, "enter", _enter)

    @rule(hand=hands, call=calls(*often(SERVICES.keys() - READS - IMPORTS)))
    def write(self, hand: int, call: Call) -> None:
        """Write by a service function."""
        self._call(hand, call)

    @rule(hand=hands, call=registered)
    def register(self, hand: int, call: Call) -> None:
        """Register a write, to be sent later."""
        self._call(hand, call)

    @rule(hand=hands, call=calls(*sorted(READS)))
    def read(self, hand: int, call: Call) -> None:
        """Read by a service function or by a repository."""
        self._call(hand, call)

    @rule(hand=hands, user_id=of.scopes, inner=st.lists(writes, min_size=1, max_size=3))
    def run(self, hand: int, user_id: str | None, inner: list[Call]) -> None:
        """Have the store run several writes, as often as needed."""
        number = hand % self.world.hands
        if self.world.depth(number) or self.world.postgres.lent:
            return

        async def act(hand: Hand) -> list[Any]:
            async def work(uow: AsyncUnitOfWork) -> list[Any]:
                hand.uow = uow
                return [await call(hand) for call in inner]

            return await hand.side.store(patient=hand.is_patient).run(work, user_id=user_id)

        names = self.world.twin.names
        homes = {home for call in inner for home in call.meets_at(names, user_id)}
        if self.world.may(number, homes):
            self._run(self.world.do(number, "run", act, homes))

    @rule(hand=hands, call=calls(*sorted(IMPORTS)))
    def load(self, hand: int, call: Call) -> None:
        """Import records."""
        self._call(hand, call)

    # Units and their blocks -------------------------------------------------------------------

    def _do(self, hand: int, name: str, act: Any) -> None:
        number = hand % self.world.hands
        if self.world.may(number):
            self._run(self.world.do(number, name, act))

    @rule(
        hand=hands,
        user_id=of.scopes,
        patient=st.sampled_from((True, True, True, False)),
        timeout=st.sampled_from((None, None, FAR_OFF)),
    )
    def renew(self, hand: int, user_id: str | None, patient: bool, timeout: float | None) -> None:
        """Take a new unit of work: for one user perhaps, patient or not, with an end or without."""
        is_patient = patient or self.world.hands == 1

        async def act(hand: Hand) -> None:
            hand.renew(user_id, patient=is_patient, timeout=timeout)

        number = hand % self.world.hands
        # Units on one connection may nest, but not take turns.
        is_reading = self.world.postgres.lent and self.world.twin.hands[number].exports
        if not self.world.depth(number) and not is_reading:
            self._do(hand, "unit_of_work", act)

    @rule(hand=hands, what=st.sampled_from(("enter", "enter", "enter", "leave", *ENDS)))
    def block(self, hand: int, what: str) -> None:
        """Open a block; or leave the innermost one, by whatever way, or try to."""
        depth = self.world.depth(hand % self.world.hands)
        if what == "enter" and depth < DEEPEST:
            self._do(hand, what, _enter)
        elif what == "roll back":
            self._do(hand, what, lambda hand: hand.uow.rollback())
        elif what != "enter":
            self._do(hand, what, _fail if "fail" in what else _leave)

    # Meetings: what becomes of two units that want the same, by chance is rare -----------------

    def _hold(self, hand: int, call: Call) -> None:
        """Open a block, write in it, and keep it open."""
        if self.world.depth(hand % self.world.hands) < DEEPEST:
            self._do(hand, "enter", _enter)
            self._call(hand, call)
            self.settle(hand, hand, -1)

    @rule(
        two=two_hands,
        chat=chats,
        first=registered,
        second=writes,
        third=writes,
        inside=st.booleans(),
        ends=st.lists(st.sampled_from(("leave", *ENDS)), max_size=2),
    )
    def meet(
        self,
        *,
        two: tuple[int, int],
        chat: int,
        first: Call,
        second: Call,
        third: Call,
        inside: bool,
        ends: list[str],
    ) -> None:
        """Hold a conversation while another wants it and a third goes by; let it go perhaps."""
        names, number = self.world.twin.names, self.world.existing(chat)
        self._hold(two[0], first.about(number, names))
        if inside and not self.world.depth(two[1] % self.world.hands):
            self._do(two[1], "enter", _enter)
        self._call(two[1], second.about(number, names))
        self._call(3 - sum(two), third)
        for end in ends:
            self.block(two[0], end)

    @rule(
        two=two_hands,
        chat=chats,
        first=holding,
        seconds=st.tuples(wanting, wanting),
    )
    def cross(
        self, two: tuple[int, int], chat: int, first: Call, seconds: tuple[Call, Call]
    ) -> None:
        """Hold a conversation each, and want the other's."""
        names = self.world.twin.names
        one, other = self.world.existing(chat), self.world.existing(chat + 1)
        for hand, number in zip(two, (one, other), strict=True):
            self._hold(hand, first.about(number, names))
        for hand, number, call in zip(two, (other, one), seconds, strict=True):
            self._call(hand, call.about(number, names))

    @rule(hand=hands, other=hands, number=st.integers(0, 5))
    def settle(self, hand: int, other: int, number: int) -> None:
        """Await a Pending: the hand's own mostly, or that of another."""
        if not self.world.twin.hands[hand % self.world.hands].pendings:
            return
        owner = (other if number == 5 else hand) % self.world.hands
        if self.world.is_busy(owner):
            return  # of writes that are on their way one side may know more already

        async def act(hand: Hand) -> Any:
            pendings = hand.side.hands[owner].pendings
            return await pendings[number % len(pendings)] if pendings else None

        self._do(hand, "await", act)

    # Exports ----------------------------------------------------------------------------------

    @rule(hand=hands, what=st.integers(0, 4), count=st.integers(1, 3), user_id=of.user_ids)
    def export(self, hand: int, what: int, count: int, user_id: Any) -> None:
        """Read the next records of an export, close one, or read one to its end."""
        if what == 0:
            self._do(hand, "export all", lambda hand: _exported(hand, user_id))
            return
        number = what % MOST_EXPORTS
        if number >= len(self.world.twin.hands[hand % self.world.hands].exports):
            self._call(hand, Call("export_conversations", {}))
            return

        async def read(hand: Hand) -> list[Any]:
            return [await anext(hand.exports[number], "no more") for _ in range(count)]

        async def close(hand: Hand) -> None:
            await hand.exports.pop(number).aclose()  # type: ignore[attr-defined]

        self._do(hand, "close an export" if what == 1 else "read on", close if what == 1 else read)

    # Others -----------------------------------------------------------------------------------

    @rule(hand=hands)
    def cancel(self, hand: int) -> None:
        """Cancel a hand that waits for a lock."""
        waiting = sorted(self.world.twin.busy())
        if waiting and not self.world.is_over:
            self._run(self.world.interrupt(waiting[hand % len(waiting)]))

    @rule(hand=hands, call=calls(*METHODS), what=st.integers(0, 4))
    def intrude(self, hand: int, call: Call, what: int) -> None:
        """Use a unit that is entered from another task."""
        number = hand % self.world.hands
        if self.world.is_over or not self.world.depth(number):
            return
        acts: list[Any] = [
            lambda hand: hand.uow.rollback(),
            lambda hand: hand.uow.__aenter__(),
            lambda hand: hand.uow.__aexit__(None, None, None),
        ]
        self._run(self.world.do_aside(number, "intrude", [*acts, call, call][what]))

    @rule(turns=st.lists(calls("append_messages"), min_size=2, max_size=HANDS))
    def crowd(self, turns: list[Call]) -> None:
        """Append several turns at once, to conversations of different users."""
        acts: list[Any] = []
        users: set[str] = set()
        for number, call in enumerate(turns[: self.world.hands]):
            homes = call.meets_at(self.world.twin.names, None)
            owners = {user_id for user_id, _ in homes}
            is_free = not owners & users and not self.world.depth(number)
            if is_free and self.world.may(number, homes):
                acts.append((number, "append_messages", call, homes))
                users |= owners
        if len(acts) > 1:
            self.steps["(several at once)"] += 1
            self._run(self.world.do_together(acts))

    # The end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Leave all units that are open, look at all that is stored, and end."""
        self._run(self._end())

    async def _end(self) -> None:
        if not hasattr(self.world, "postgres"):
            return
        try:
            if not self.world.is_over and not self.has_failed:
                await self._leave_all()
                await self._look_at_all()
        finally:
            await self.world.close()

    async def _leave_all(self) -> None:
        world = self.world
        while open_units := [n for n in range(world.hands) if world.depth(n) or world.is_busy(n)]:
            free = [n for n in open_units if not world.is_busy(n)]
            if world.is_over:
                return
            await world.do(free[0], "leave", _leave)

    async def _look_at_all(self) -> None:
        if self.world.is_over:
            return

        async def look(hand: Hand) -> Any:
            hand.renew(None)
            seen: list[Any] = [await _exported(hand, None)]
            for user_id in of.USERS:
                arguments = {"user_id": user_id, "limit": 1000}
                page = await Call("list_conversations", arguments)(hand)
                for chat in page.conversations:
                    said = await messages_after(
                        hand.uow, conversation_id=chat.id, position=0, limit=1000
                    )
                    seen += [chat, said]
            return seen

        await self.world.do(0, "look at all", look)


async def _enter(hand: Hand) -> None:
    await hand.uow.__aenter__()


async def _leave(hand: Hand) -> None:
    await hand.uow.__aexit__(None, None, None)


async def _fail(hand: Hand) -> None:
    await hand.uow.__aexit__(HostError, HostError(), None)


async def _exported(hand: Hand, user_id: Any) -> list[Any]:
    async with aclosing(export_conversations(hand.uow, user_id=user_id)) as records:
        return [record async for record in records]
