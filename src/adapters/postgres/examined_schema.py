"""What a role finds in a schema: the store's tables, its own privileges, row security."""

from __future__ import annotations

import shlex
from typing import Final

from attrs import frozen

from ...domain.errors import StoreMisconfigured
from .connections import Connection
from .ddl import fetch, fill, literal, quoted
from .findings import Finding, advice, ok, problem
from .migrate import RECORDS, applied, is_secured, known_migrations, missing_after
from .privileges import CHANGED

# From the catalogs, which everybody reads: names in a schema that may not be used are an error.
_THERE: Final = """SELECT oid::bigint, has_schema_privilege(oid, 'USAGE')
FROM pg_namespace WHERE nspname = {schema}"""

_OBJECTS: Final = """SELECT relname::text, oid::bigint, relrowsecurity,
    pg_has_role(relowner, 'USAGE')
FROM pg_class WHERE relnamespace = {schema} AND relkind IN ('r', 'p', 'S')
UNION ALL SELECT proname::text, oid::bigint, false, pg_has_role(proowner, 'USAGE')
FROM pg_proc WHERE pronamespace = {schema}"""

_TABLES: Final = ("ai_conversations", "ai_messages")
_SEQUENCE: Final = "ai_ids"
_FUNCTIONS: Final = ("refuse", "is_own")

_MIGRATE: Final = "run as the owner: conversation-store migrate"


@frozen
class Need:
    """A privilege that service functions need."""

    verb: str
    column: str | None
    on: str

    @property
    def is_for_reading(self) -> bool:
        """Whether those need it that read."""
        return self.verb == "SELECT" or self.on == "refuse"


NEEDS: Final = (
    *(Need(verb, None, on) for on in _TABLES for verb in ("SELECT", "INSERT", "DELETE")),
    *(Need("UPDATE", column, on) for on, columns in CHANGED.items() for column in columns),
    Need("USAGE", None, _SEQUENCE),
    *(Need("EXECUTE", None, on) for on in _FUNCTIONS),
)


@frozen
class _Objects:
    ids: dict[str, int]
    secured: frozenset[str]
    is_owner: bool


async def look_at_schema(connection: Connection, schema: str, role: str) -> list[Finding]:
    """Look at a schema as the role that is connected. Errors: the driver's."""
    there = await fetch(connection, fill(_THERE, schema=literal(schema)))
    if not there:
        return [problem("schema", f"there is no schema {schema}", _migrating(schema))]
    [(schema_id, may_use)] = there
    if not may_use:
        remedy = _granting(schema, role)
        return [problem("schema", f"{role} may not use the schema {schema}", remedy)]
    rows = await fetch(connection, fill(_OBJECTS, schema=str(schema_id)))
    objects = _Objects(
        ids={name: number for name, number, _, _ in rows},
        secured=frozenset(name for name, _, is_on, _ in rows if is_on and name in _TABLES),
        is_owner=any(is_owner for name, _, _, is_owner in rows if name in _TABLES),
    )
    missing = [name for name in (*_TABLES, _SEQUENCE, *_FUNCTIONS) if name not in objects.ids]
    if missing:
        what = f"{schema} has no {', '.join(missing)}"
        return [problem("migrations", what, _migrating(schema))]
    return [
        await _migrations(connection, schema, objects),
        await _privileges(connection, schema, role, objects),
        await _row_security(connection, schema, role, objects),
    ]


async def _migrations(connection: Connection, schema: str, objects: _Objects) -> Finding:
    about, known = "migrations", known_migrations()
    records = objects.ids.get(RECORDS)
    if records is None:
        return problem(about, f"{schema} has no {RECORDS}", _migrating(schema))
    query = f"SELECT has_table_privilege({records}, 'SELECT')"
    if await fetch(connection, query) != [(True,)]:
        return ok(
            about, "tables, sequence and functions are there; the owner sees which were applied"
        )
    try:
        missing = missing_after(await applied(connection, schema), known)
    except StoreMisconfigured as error:
        return problem(about, error.reason, "let the package and the database have one version")
    if missing:
        names = ", ".join(each.name for each in missing)
        return problem(about, f"missing: {names}", _migrating(schema))
    return ok(about, f"all {len(known)} are applied")


async def _privileges(connection: Connection, schema: str, role: str, objects: _Objects) -> Finding:
    about = "privileges"
    [held] = await fetch(connection, f"SELECT {', '.join(_asking(n, objects.ids) for n in NEEDS)}")
    lacking = [need for need, is_held in zip(NEEDS, held, strict=True) if not is_held]
    if not lacking:
        what = "all that the service functions need"
        return ok(about, f"{what}, as the owner of the tables" if objects.is_owner else what)
    what, remedy = f"{role} lacks {_listed(lacking)}", _granting(schema, role)
    if set(lacking) == {need for need in NEEDS if not need.is_for_reading}:
        remedy = f"right for a role that only reads; else {remedy}"
        return advice(about, f"{role} may read, and nothing else", remedy)
    return problem(about, what, remedy)


def _asking(need: Need, ids: dict[str, int]) -> str:
    on = ids[need.on]
    if need.column is not None:
        return f"has_column_privilege({on}, {literal(need.column)}, '{need.verb}')"
    kinds = {_SEQUENCE: "sequence"} | dict.fromkeys(_FUNCTIONS, "function")
    return f"has_{kinds.get(need.on, 'table')}_privilege({on}, '{need.verb}')"


def _listed(lacking: list[Need]) -> str:
    parts: dict[tuple[str, str], list[str]] = {}
    for need in lacking:
        parts.setdefault((need.verb, need.on), []).append(need.column or "")
    return "; ".join(
        f"{verb} {f'({columns}) ' if (columns := ', '.join(filter(None, names))) else ''}on {on}"
        for (verb, on), names in parts.items()
    )


async def _row_security(
    connection: Connection, schema: str, role: str, objects: _Objects
) -> Finding:
    about = "row security"
    if not objects.secured:
        return ok(about, "off: users are kept apart by what each statement says")
    if not await is_secured(connection, schema):
        what = "on, but not on both tables in the form that this version has it"
        return problem(about, what, f"{_migrating(schema)} --row-security")
    ids = (objects.ids[name] for name in _TABLES)
    query = f"SELECT {' AND '.join(f'row_security_active({each}::oid)' for each in ids)}"
    if await fetch(connection, query) == [(True,)]:
        if await fetch(connection, "SHOW row_security") == [("off",)]:
            remedy = f"ALTER ROLE {quoted(role)} SET row_security = on;"
            return problem(about, "on, but the setting row_security is off: all is refused", remedy)
        return ok(about, f"on, and it binds {role}: open the store with row_security=True")
    what = f"on, but it does not bind {role}, a superuser or one with BYPASSRLS"
    return advice(about, what, "right for maintenance; connect the application as another role")


def _migrating(schema: str) -> str:
    return _MIGRATE if schema == "operational" else f"{_MIGRATE} --schema {shlex.quote(schema)}"


def _granting(schema: str, role: str) -> str:
    return f"{_migrating(schema)} --application-role {shlex.quote(role)}"
