"""Whom a unit of work acts for."""

from __future__ import annotations

from attrs import frozen

from .errors import InvalidConversation, UnitOfWorkMisuse
from .text import check_name


@frozen
class Scope:
    """The user that a unit of work acts for, and who sees to it that it acts for no other."""

    user_id: str | None = None
    """None: it acts for the application."""
    row_security: bool = False
    """Whether the server sees to it too, by the policies of row security."""

    def __attrs_post_init__(self) -> None:
        """Check it. Errors: InvalidConversation, UnitOfWorkMisuse."""
        if self.user_id is not None:
            name = check_name(self.user_id, "user_id", InvalidConversation)
            object.__setattr__(self, "user_id", name)  # where it was of a subclass of str
        elif self.row_security:
            raise UnitOfWorkMisuse(
                reason="under row security a unit of work acts for one user: name the user_id, or "
                "use a store without row_security whose role is the maintenance role"
            )

    def check_import(self) -> None:
        """Refuse an import where the server does, by COPY. Errors: UnitOfWorkMisuse."""
        if self.row_security:
            raise UnitOfWorkMisuse(
                reason="row security refuses an import: import with a store without row_security "
                "whose role is the maintenance role"
            )
