"""The scope of a unit of work as a setting, which the policies of row security read.

It belongs to the transaction, never to the session: poolers lend a session to many. A role that
the policies do not bind is refused in the same statement.
"""

from __future__ import annotations

from typing import Final, LiteralString

from attrs import frozen

from .statement import Command

_SET: Final[LiteralString] = """CASE
    WHEN row_security_active({conversations_name}::regclass)
        AND row_security_active({messages_name}::regclass)
    THEN set_config('conversation_store.user_id', %(user_id)s, true) IS NOT NULL
    ELSE {refuse}('row_security_inactive', json_build_object('role', current_user)) END"""

SCOPE: Final[LiteralString] = f"SELECT {_SET}"

# What others before had set is kept, the last one first: units of work nest.
SCOPE_FOR_A_WHILE: Final[LiteralString] = f"""
SELECT set_config('conversation_store.user_ids', (
    jsonb_build_array(coalesce(current_setting('conversation_store.user_id', true), ''))
    || coalesce(nullif(current_setting('conversation_store.user_ids', true), ''), '[]')::jsonb
    )::text, true), {_SET}
"""

_RESTORE: Final = b"""
SELECT set_config('conversation_store.user_id',
        current_setting('conversation_store.user_ids')::jsonb ->> 0, true),
    set_config('conversation_store.user_ids',
        (current_setting('conversation_store.user_ids')::jsonb - 0)::text, true)
""".strip()


@frozen
class RowSecurity:
    """The commands that tell the server for whom a unit acts."""

    user_id: str
    scope: bytes
    """The texts SCOPE and SCOPE_FOR_A_WHILE, of one store."""
    scope_for_a_while: bytes

    def setting(self) -> Command:
        """Return the command that sets the user for the rest of a transaction."""
        return Command(self.scope, {"user_id": self.user_id})

    def setting_for_a_while(self) -> Command:
        """Return the command that sets the user until he is set back, or that is rolled back."""
        # Never prepared, for the reason that `limiting` gives.
        return Command(self.scope_for_a_while, {"user_id": self.user_id}, prepare=False)

    def restoring(self) -> Command:
        """Return the command that sets the user back to whoever it was."""
        return Command(_RESTORE, prepare=False)
