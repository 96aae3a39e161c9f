"""What is sent before a unit's own statements, in the same round trip: its scope and its limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import evolve, frozen

from ...domain.scope import Scope
from ...service_layer.limited import TimeLimit
from .row_security import RowSecurity
from .server_limit import limiting, restoring
from .statement import BEGIN, COMMIT, Command
from .texts import Texts


@frozen
class Opening:
    """How the transactions of a unit of work are opened."""

    limit: TimeLimit | None = None
    row_security: RowSecurity | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is sent before the unit's own statements."""
        return self.limit is None and self.row_security is None

    @property
    def unlimited(self) -> Opening:
        """The same without a limit: for what may go on when that is over."""
        return self if self.limit is None else evolve(self, limit=None)

    def commands(self) -> list[Command]:
        """Return what is sent once in a transaction of the unit's own."""
        limit = limiting(self.limit)
        return limit if self.row_security is None else [*limit, self.row_security.setting()]

    def for_a_while(self) -> list[Command]:
        """Return what is sent in a transaction of the host's, until `restoring`."""
        limit = limiting(self.limit, for_a_while=True)
        if self.row_security is None:
            return limit
        return [*limit, self.row_security.setting_for_a_while()]

    def restoring(self) -> list[Command]:
        """Return what sets back what `for_a_while` set."""
        limit = restoring(self.limit)
        return limit if self.row_security is None else [self.row_security.restoring(), *limit]

    def script(self, commands: Sequence[Command]) -> list[Command]:
        """Return all that carries out writes as one transaction, in one round trip.

        With anything beside a lone write COMMIT has an answer of its own: what fails in it, as a
        deferred constraint may, fails like any other command.
        """
        if len(commands) == 1 and self.is_empty:
            return list(commands)
        return [BEGIN, *self.commands(), *commands, COMMIT]

    def reading(self, command: Command) -> list[Command]:
        """Return all that carries out a lone read, in one round trip.

        Of a read and its scope the server makes a transaction by itself, which ends with what was
        sent together.
        """
        return [*self.commands(), command] if self.limit is None else self.script([command])


NOTHING: Final = Opening()
"""How transactions are opened where nothing has to be sent first."""


def opening_of(scope: Scope, texts: Texts) -> Opening:
    """Return how the transactions of a unit with that scope are opened."""
    if scope.user_id is None or not scope.row_security:
        return NOTHING
    return Opening(None, RowSecurity(scope.user_id, texts.scope, texts.scope_for_a_while))
