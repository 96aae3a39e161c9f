"""Scoped units of work that are open inside one another, in one transaction of the host's.

Under row security the server knows one user at a time: the one of the unit that was opened last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from ...domain.errors import UnitOfWorkMisuse
from ...service_layer.script import Block, BlockState
from .connections import Connection

_OPEN: Final = "_conversation_store_open_units"
"""The attribute of a connection that holds the units that are open on it, the last one last."""


@frozen
class _OpenUnit:
    user_id: str | None
    block: Block
    """Its outermost."""
    blocks: Sequence[Block]
    """Those that the unit is in now."""

    @property
    def is_open(self) -> bool:
        is_left = not self.blocks or self.blocks[0] is not self.block
        return not is_left and self.block.state is BlockState.LIVE


def note_open(connection: Connection, user_id: str | None, blocks: Sequence[Block]) -> None:
    """Note that a unit is open on a connection, once its outermost block is; `blocks` is live."""
    units = _open_units(connection)
    if blocks and blocks[0].opened and not any(one.block is blocks[0] for one in units):
        units.append(_OpenUnit(user_id, blocks[0], blocks))


def check_user(connection: Connection, user_id: str | None) -> None:
    """Refuse to act for a user while a unit of another, that was opened later, is not left."""
    units = _open_units(connection)
    if units and units[-1].user_id != user_id:
        raise UnitOfWorkMisuse(
            reason="a unit of another user was opened on this connection and is not left yet: "
            "leave it before going on with this one"
        )


def _open_units(connection: Connection) -> list[_OpenUnit]:
    units: list[_OpenUnit] = connection.__dict__.setdefault(_OPEN, [])
    while units and not units[-1].is_open:
        units.pop()
    return units
