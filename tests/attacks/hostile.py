"""Values that are too large, too deep, without end, or that lie about what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from itertools import repeat
from typing import Any, Final

DEEP: Final = 100_000
HUGE: Final = 10**1_000_000
"""An integer that Python itself refuses to write."""
SECRET: Final = "words that nobody is to read"


class CountedError(Exception):
    """More was read than any limit allows."""


def endless(item: Any, most: int = 1_000_000) -> Iterator[Any]:
    """Give the same again and again, but not to one who reads without end."""
    yield from repeat(item, most)
    raise CountedError


class EndlessList(list[Any]):
    """A list that never ends."""

    def __iter__(self) -> Iterator[Any]:
        return endless(None)


class EndlessObject(Mapping[str, Any]):
    """An object that never ends."""

    def __init__(self, name: Callable[[int], str]) -> None:
        self.name = name

    def __getitem__(self, key: str) -> Any:
        return 1

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        yield from map(self.name, range(1_000_000))
        raise CountedError


class HostError(Exception):
    """What hostile objects raise."""


class Raising(dict[str, Any]):
    """An object that cannot be read."""

    def items(self) -> Any:
        """Refuse."""
        raise HostError(SECRET)

    __iter__ = __getitem__ = get = keys = values = items  # type: ignore[assignment]


class RaisingList(list[Any]):
    """A list that cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        raise HostError


class Growing(dict[str, Any]):
    """An object that grows while it is read."""

    def items(self) -> Any:
        """Grow with each member."""
        for key in super().items():
            self[f"{len(self)}"] = 1
            yield key


class Triples(dict[str, Any]):
    """An object whose members are no pairs."""

    def items(self) -> Any:
        """Give three at a time."""
        return [(1, 2, 3)]


class LyingText(str):
    """A text that says it is short, and storable."""

    __slots__ = ()

    def __len__(self) -> int:
        return 1

    def isascii(self) -> bool:
        """Lie."""
        return True

    def __contains__(self, _: object) -> bool:
        return False

    def encode(self, *_: Any, **__: Any) -> bytes:
        """Lie."""
        return b"short"

    def __str__(self) -> str:
        return "short"

    __repr__ = __str__


class LyingInteger(int):
    """An integer that says it is small."""

    def __lt__(self, _: object) -> bool:
        return True

    __gt__ = __le__ = __ge__ = __lt__

    def __abs__(self) -> int:
        return 1


class LyingFloat(float):
    """A number that says it is small."""

    def __abs__(self) -> float:
        return 1.0

    def __repr__(self) -> str:
        return "1.0"


def nested(*, as_list: bool) -> dict[str, Any]:
    """Return an object that nests deeper than Python recurses."""
    value: Any = {}
    for _ in range(DEEP):
        value = [value] if as_list else {"a": value}
    return {"a": value}


def circular() -> dict[str, Any]:
    """Return an object that holds itself, and a list that does."""
    value: dict[str, Any] = {}
    items: list[Any] = [value]
    items.append(items)
    value["a"] = items
    return value


def laughing(*, as_list: bool) -> dict[str, Any]:
    """Return a small object that is written with 10**50 texts."""
    value: Any = "ha"
    for _ in range(50):
        value = [value] * 10 if as_list else dict.fromkeys("abcdefghij", value)
    return {"a": value}


@cache
def million_keys() -> dict[str, Any]:
    """Return an object of a million keys."""
    return dict.fromkeys(map(str, range(1_000_000)))


OBJECTS: Final[dict[str, Callable[[], Any]]] = {
    "deep object": lambda: nested(as_list=False),
    "deep list": lambda: nested(as_list=True),
    "circular": circular,
    "laughing list": lambda: laughing(as_list=True),
    "laughing object": lambda: laughing(as_list=False),
    "million keys": million_keys,
    "million texts": lambda: dict.fromkeys(million_keys(), "x"),
    "the same list often": lambda: dict.fromkeys(map(str, range(300)), ["x"] * 100_000),
    "long text": lambda: {"a": "x" * 1_000_001},
    "long text of four bytes": lambda: {"a": "\U0001f600" * 250_001},
    "long key": lambda: {"x" * 1_000_001: 1},
    "very long text": lambda: {"a": "\u00e9" * 30_000_000},
    "control characters": lambda: {"a": "\x01" * 200_000},
    "huge integer": lambda: {"a": HUGE},
    "huge negative integer": lambda: {"a": -HUGE},
    "huge float": lambda: {"a": 1.7e308},
    "infinite": lambda: {"a": float("inf")},
    "not a number": lambda: {"a": [float("nan")]},
    "lone surrogate": lambda: {"a": "\udfff"},
    "lone surrogate in a key": lambda: {"\ud800": 1},
    "NUL": lambda: {"a": ["\0"]},
    "integer as a key": lambda: {1: 1},
    "huge integer as a key": lambda: {HUGE: 1},
    "decimal": lambda: {"a": Decimal(1)},
    "time": lambda: {"a": datetime.now(UTC)},
    "bytes": lambda: {"a": b"x"},
    "set": lambda: {"a": {1}},
    "type": lambda: {"a": object},
    "endless list": lambda: {"a": EndlessList()},
    "endless object": lambda: EndlessObject(str),
    "endless object of one key": lambda: EndlessObject(lambda _: "a"),
    "endless object inside": lambda: {"a": EndlessObject(str)},
    "raising": Raising,
    "raising inside": lambda: {"a": [Raising()]},
    "raising list": lambda: {"a": RaisingList()},
    "growing": lambda: Growing(a=1),
    "triples": lambda: Triples(a=1),
    "lying text": lambda: {"a": LyingText("\0")},
    "long lying text": lambda: {"a": LyingText("x" * 1_000_001)},
    "lying key": lambda: {LyingText("\0"): 1},
    "lying integer": lambda: {"a": LyingInteger(HUGE)},
    "lying float": lambda: {"a": LyingFloat("nan")},
    "list": lambda: [("a", 1)],
    "text": lambda: '{"a": 1}',
    "number": lambda: 5,
}
"""What is no JSON object that can be stored."""
