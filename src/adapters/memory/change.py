"""Writes in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from attrs import define

from ...domain.unit import Write

T = TypeVar("T")


@define(eq=False)
class Change(Write[T]):
    """A write in memory."""

    apply: Callable[[Sequence[int]], Awaitable[T]]
    """What it does to the view of its unit, with the ids it was given."""
    ids_needed: int = 0
    ids: Sequence[int] = ()
