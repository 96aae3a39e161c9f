"""What the roles may do that work with a store: no more than its service functions need.

Each naming of a role gives it exactly that: what it had beyond is taken away. The owner of the
schema and its tables grants, see docs/how-to/run-migrations.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ...domain.errors import StoreMisconfigured
from ...domain.text import storable_text
from .connections import Connection
from .ddl import fetch, fill, literal, quoted, run

Roles = Mapping[str, str]
"""Names of roles, by the keyword that they are given with."""

MAX_NAME_BYTES: Final = 63
"""Longest name, in bytes of UTF-8; PostgreSQL would cut off the rest."""

_NO_ROLES: Final = {"public", "none"}
"""Names that mean something else where a role is named."""

# CASCADE is for what a role handed on that had a privilege with grant option.
_TAKE: Final = """REVOKE ALL ON {schema}.ai_conversations, {schema}.ai_messages,
    {schema}.conversation_store_migrations FROM {role} CASCADE;
REVOKE ALL ON SEQUENCE {schema}.ai_ids FROM {role} CASCADE;
REVOKE ALL ON FUNCTION {schema}.refuse(text, json), {schema}.is_own(bigint)
    FROM {role} CASCADE"""

_TAKE_CREATE: Final = "REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC"

_ENTER: Final = """REVOKE ALL ON SCHEMA {schema} FROM {role} CASCADE;
GRANT USAGE ON SCHEMA {schema} TO {role}"""

# Never the columns that say whose a row is and where it stands: id, user_id, session_id, position.
CHANGED: Final[Mapping[str, Sequence[str]]] = {
    "ai_conversations": (
        *("status", "rescue_id", "intent_type", "metadata"),
        *("last_activity", "message_count", "version"),
    ),
    "ai_messages": ("content", "intent_type", "slots", "metadata", "request_digest"),
}
"""The columns of each table that service functions change."""

_WORK: Final = f"""GRANT SELECT, INSERT, DELETE,
    UPDATE ({", ".join(CHANGED["ai_conversations"])})
    ON {{schema}}.ai_conversations TO {{role}};
GRANT SELECT, INSERT, DELETE,
    UPDATE ({", ".join(CHANGED["ai_messages"])})
    ON {{schema}}.ai_messages TO {{role}};
GRANT USAGE ON SEQUENCE {{schema}}.ai_ids TO {{role}};
GRANT EXECUTE ON FUNCTION {{schema}}.refuse(text, json), {{schema}}.is_own(bigint) TO {{role}}"""

# It calls `refuse` where row security is not what it should be.
_READ: Final = """GRANT SELECT ON {schema}.ai_conversations, {schema}.ai_messages TO {role};
GRANT EXECUTE ON FUNCTION {schema}.refuse(text, json) TO {role}"""

_GRANTS: Final = {"application_role": _WORK, "read_only_role": _READ, "maintenance_role": _WORK}

BYPASSING: Final = "maintenance_role"
"""The one that row security does not bind."""

# A role can do what those can do that it is a member of. Before PostgreSQL 16, CREATEROLE is enough
# to become a member of any role but a superuser.
_LOOK: Final = """SELECT r.rolbypassrls,
    EXISTS (SELECT FROM pg_roles AS b WHERE b.rolbypassrls AND pg_has_role(r.oid, b.oid, 'MEMBER')),
    EXISTS (SELECT FROM pg_roles AS o WHERE pg_has_role(r.oid, o.oid, 'MEMBER') AND (o.rolsuper
        OR o.rolcreaterole AND current_setting('server_version_num')::int < 160000
        OR o.oid IN ((SELECT nspowner FROM pg_namespace WHERE nspname = {schema}),
            coalesce((SELECT relowner FROM pg_class WHERE oid = to_regclass({table})),
                (SELECT oid FROM pg_roles WHERE rolname = current_user)))))
FROM pg_roles AS r WHERE r.rolname = {name}"""

_MAY_GRANT: Final = """SELECT has_schema_privilege({schema}, 'USAGE WITH GRANT OPTION')
    AND has_table_privilege({conversations}, 'SELECT WITH GRANT OPTION')
    AND has_table_privilege({messages}, 'SELECT WITH GRANT OPTION')"""


def check_name(what: str, name: object) -> None:
    """Raise StoreMisconfigured for a name that PostgreSQL would refuse or cut short."""
    is_text = isinstance(name, str) and storable_text(name) == name
    if not is_text or not 1 <= len(str(name).encode()) <= MAX_NAME_BYTES:
        reason = f"{what} must be a text of 1..{MAX_NAME_BYTES} bytes that can be stored"
        raise StoreMisconfigured(reason=reason)


def check_roles(roles: Roles) -> None:
    """Raise StoreMisconfigured for roles that cannot be granted to, as far as names tell."""
    for keyword, name in roles.items():
        check_name(keyword, name)
        if name in _NO_ROLES:
            raise StoreMisconfigured(reason=f"{keyword} must not be {name!r}: it names no role")
    if len(set(roles.values())) < len(roles):
        reason = f"{', '.join(roles)} must be different roles: what each may do is not the same"
        raise StoreMisconfigured(reason=reason)


def grants(schema: str, roles: Roles) -> list[str]:
    """Return the statements that give the roles what they need, and take the rest."""
    if not roles:
        return []
    texts = [fill(part, schema=quoted(schema), role="PUBLIC") for part in (_TAKE, _TAKE_CREATE)]
    for keyword, name in roles.items():
        parts = (_TAKE, _ENTER, _GRANTS[keyword])
        texts += [fill(part, schema=quoted(schema), role=quoted(name)) for part in parts]
    return texts


async def check_granted(connection: Connection, schema: str, roles: Roles) -> None:
    """Raise StoreMisconfigured for a role that is missing, or that its grants would not bind."""
    table = literal(quoted(schema, "ai_conversations"))
    for keyword, name in roles.items():
        look = fill(_LOOK, name=literal(name), schema=literal(schema), table=table)
        found = await fetch(connection, look)
        if not found:
            reason = f"there is no role {name!r}, the {keyword}: create it first (CREATE ROLE)"
            raise StoreMisconfigured(reason=reason)
        [(bypasses, may_bypass, may_own)] = found
        if may_own:
            reason = f"the {keyword} {name!r} must not be a superuser, nor own the schema or its "
            reason += "tables, nor have CREATEROLE before PostgreSQL 16, nor be a member of a role "
            reason += "that is or does: no grant would limit it"
            raise StoreMisconfigured(reason=reason)
        if keyword == BYPASSING and not bypasses:
            reason = f"the {keyword} {name!r} must bypass row security: ALTER ROLE … BYPASSRLS"
            raise StoreMisconfigured(reason=reason)
        if keyword != BYPASSING and may_bypass:
            reason = f"the {keyword} {name!r} must not bypass row security, nor be a member of a "
            reason += "role that does: ALTER ROLE … NOBYPASSRLS"
            raise StoreMisconfigured(reason=reason)


async def grant(connection: Connection, schema: str, roles: Roles) -> None:
    """Give the roles what they need, and take the rest. Errors: StoreMisconfigured."""
    may_grant = fill(
        _MAY_GRANT,
        schema=literal(schema),
        conversations=literal(quoted(schema, "ai_conversations")),
        messages=literal(quoted(schema, "ai_messages")),
    )
    if roles and await fetch(connection, may_grant) != [(True,)]:
        reason = "roles are granted to by the owner of the schema and its tables: migrate as it"
        raise StoreMisconfigured(reason=reason, sqlstate="42501")
    for text in grants(schema, roles):
        await run(connection, text)
