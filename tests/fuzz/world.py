"""Both sides together: what a hand does is done on both, and answered alike, or it fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from conversation_store import TransactionAborted
from conversation_store.service_layer.script import BlockState

from .calls import Call, Home
from .hands import Act, Hand
from .names import Ended
from .server import Manner, Postgres, Server
from .twin import Twin

MOST_SHOWN = 200
"""Characters of an answer in the story of a program."""


class Differ(AssertionError):
    """The two sides answered differently."""


class World:
    """A twin and a store on PostgreSQL, both empty, and hands that do the same on both."""

    def __init__(self, server: Server, steps: Counter[str]) -> None:
        self._server = server
        self._steps = steps
        """How often what was done, in all worlds of a run."""
        self.twin = Twin()
        self.postgres: Postgres
        self.is_over = False
        """Whether it came to where the contract leaves open what happens next."""
        self.done: list[str] = []
        """What was done, step by step, and how it ended."""
        self._alone: set[int] = set()
        """Hands that do something in a unit of which it is all."""
        self._lent: Any = None
        self._meets: list[set[Home]] = []
        """By hand: where it may meet others with what it registered or does."""

    async def open(self, manner: Manner, hands: int) -> None:
        """Begin, with as many hands."""
        await self._server.empty()
        self._lent = await self._server.lend(manner)
        self.postgres = Postgres(self._server, manner, self._lent)
        hands = 1 if self._lent else hands
        for side in (self.twin, self.postgres):
            side.add_hands(hands)
        self._meets = [set() for _ in range(hands)]

    async def close(self) -> None:
        """End, whatever state it is in."""
        await self.twin.end_hands()
        await self.postgres.end_hands()
        if self._lent is not None:
            await self._lent.close()

    @property
    def hands(self) -> int:
        """How many hands there are on each side."""
        return len(self.twin.hands)

    def is_busy(self, number: int) -> bool:
        """Whether a hand waits for a lock."""
        return self.twin.hands[number].is_busy

    def depth(self, number: int) -> int:
        """Return how many blocks of a hand's unit are open."""
        return self.twin.hands[number].depth

    def is_spoilt(self, number: int) -> bool:
        """Whether the innermost block of a hand's unit has failed or was rolled back."""
        blocks = self.twin.hands[number].uow._blocks
        return bool(blocks) and blocks[-1].state is not BlockState.LIVE

    def existing(self, number: int) -> int:
        """Return the number of a conversation that is stored, if one is."""
        names = self.twin.names
        there = [n for n in sorted(names.homes) if self.twin.is_stored(names.conversations[n])]
        return there[number % len(there)] if there else number

    # What may be done -----------------------------------------------------------------------------

    def may(self, number: int, homes: Iterable[Home] = ()) -> bool:
        """Whether a hand is free, and what it does is not left open by the contract.

        Left open is which of several units that wait goes on first. So nobody begins to wait for
        a unit that another waits for already, or where another that waits is yet to come.
        """
        if self.is_over or self.is_busy(number):
            return False
        wanted = self._meets[number].union(homes)
        own = self.twin.holder(number)
        waiting = {n: self.twin.waits_for(n) for n in self.twin.busy()}
        if any(wanted & self._meets[n] for n, owner in waiting.items() if owner is not own):
            return False
        owners = {owner for home in wanted for owner in self.twin.owners(*home)} - {own}
        return not owners & set(waiting.values())

    # Steps ----------------------------------------------------------------------------------------

    async def do(self, number: int, name: str, act: Act, homes: Iterable[Home] = ()) -> None:
        """Have a hand do something on both sides."""
        await self.do_together([(number, name, act, homes)])

    async def do_together(self, acts: Iterable[tuple[int, str, Act, Iterable[Home]]]) -> None:
        """Have several hands do something at the same time."""
        for number, name, act, homes in acts:
            self._steps[name] += 1
            self.done.append(f"{number}: {act if isinstance(act, Call) else name}")
            self._meets[number].update(homes)
            if not self.depth(number):
                self._alone.add(number)
            for side in (self.twin, self.postgres):
                side.hands[number].tell(act)
        await self._settle()

    async def interrupt(self, number: int) -> None:
        """Cancel what a hand waits for."""
        self._steps["cancel"] += 1
        self.done.append(f"{number}: is cancelled")
        cuts = self._server.cuts.count
        for side in (self.twin, self.postgres):
            side.hands[number].interrupt()
        try:
            await self._settle()
        except Differ:
            if self._server.cuts.count == cuts:
                raise
            self.is_over = (
                True  # the server was too slow: the whole unit is lost with its connection
            )
            self._steps["(cut when cancelled)"] += 1

    async def do_aside(self, number: int, name: str, act: Callable[[Hand], Awaitable[Any]]) -> None:
        """Do something with a hand's unit, but in another task."""
        self._steps[name] += 1
        self.done.append(f"{number}, from outside: {act if isinstance(act, Call) else name}")
        ends: list[Any] = []
        for side in (self.twin, self.postgres):
            try:
                ended = Ended(await act(side.hands[number]))
            except Exception as error:  # noqa: BLE001 - the other side is to raise the same
                ended = Ended(error=error)
            ends.append(ended.told(side.names))
        _check_equal(f"hand {number}, from outside", *ends)

    async def _settle(self) -> None:
        circles = self.twin.circles
        waiting = await self.twin.settle()
        await self.postgres.settle(waiting)
        circles = self.twin.circles - circles
        try:
            self._compare_all(waiting)
        except Differ:
            if not circles or not self._may_have_other_victim():
                raise
            self.is_over = True
            self._steps["(another victim of a circle)"] += 1
        self._steps["(waits)"] += len(waiting)
        self._steps["(circles of waits)"] += circles
        owners = [owner for n in waiting if (owner := self.twin.waits_for(n))]
        if len(owners) > len(set(owners)):
            self.is_over = True
            self._steps["(several wait for one)"] += 1

    def _may_have_other_victim(self) -> bool:
        """Whether the server may have ended a circle of waits by refusing another than the twin.

        Its victim is seen, or it was one of those that are sent again unseen.
        """
        victims = {number for number, hand in enumerate(self.postgres.hands) if _is_victim(hand)}
        return bool(victims or self._alone)

    def _compare_all(self, waiting: set[int]) -> None:
        _check_equal("who waits", waiting, self.postgres.busy())
        for number in range(self.hands):
            self._compare(number)
        orders = [side.names.order_of_times() for side in (self.twin, self.postgres)]
        _check_equal("the order of times", *orders)

    def _compare(self, number: int) -> None:
        hands = [side.hands[number] for side in (self.twin, self.postgres)]
        if hands[0].ended is not None and not hands[0].is_busy:
            ends = [
                hand.ended.result().told(hand.names) for hand in hands if hand.ended is not None
            ]
            self.done.append(f"   {number} {_short(ends[0])}")
            if hands[0].ended is not None and hands[0].ended.result().error is not None:
                self._steps[f"(raised {type(hands[0].ended.result().error).__name__})"] += 1
            _check_equal(f"hand {number}", *ends)
            for hand in hands:
                hand.ended = None
            self._alone.discard(number)
            if not hands[0].depth:
                self._meets[number] = set()
        if not hands[0].is_busy:
            states = [(str(hand.uow.outcome), hand.depth) for hand in hands]
            _check_equal(f"outcome and depth of hand {number}", *states)


def _short(told: Any) -> str:
    text = str(told)
    return text if len(text) < MOST_SHOWN else f"{text[:MOST_SHOWN]} …"


def _is_victim(hand: Hand) -> bool:
    if hand.ended is None or hand.is_busy:
        return False
    error = hand.ended.result().error
    return isinstance(error, TransactionAborted) and error.sqlstate == "40P01"


def _check_equal(what: str, twin: Any, postgres: Any) -> None:
    if twin != postgres or repr(twin) != repr(postgres):
        raise Differ(f"{what}\n      twin: {twin}\nPostgreSQL: {postgres}")
