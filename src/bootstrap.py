"""The composition root: where adapters are chosen and put together.

The only module that knows all layers. It loads the driver when a store on PostgreSQL is made, so
that importing the package, and testing with the twin, needs none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from .service_layer.guarded_observer import GuardedObserver
from .service_layer.observer import Observer
from .service_layer.retry import Retry
from .service_layer.run import run_unit
from .service_layer.unit_of_work import AsyncUnitOfWork

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool


T = TypeVar("T")


class _Adapter(Protocol):
    retry: Retry

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    def unit_of_work(
        self, user_id: str | None, connection: Any, timeout: float | None
    ) -> AsyncUnitOfWork: ...
    async def migrate(
        self, id_block: int, connection: Any, *, row_security: bool, roles: Mapping[str, str]
    ) -> list[str]: ...
    async def ping(self) -> None: ...


class ConversationStore:
    """Where conversations are kept; gives the units of work that service functions take.

    Made by `connect`, `from_pool` or `in_memory`, and used as an async context manager:

        async with ConversationStore.connect(dsn) as store:
            await store.migrate()
            conversation, messages = await start_conversation(
                store.unit_of_work(), user_id="u-1", session_id="s-1"
            )

    One store serves all tasks of an event loop; each task takes units of work of its own.
    """

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    @classmethod
    def connect(
        cls,
        dsn: str,
        *,
        schema: str = "operational",
        min_size: int = 2,
        max_size: int = 10,
        timeout: float = 30.0,
        prepare_threshold: int | None = 5,
        coalesce: bool = False,
        row_security: bool = False,
        retry: Retry | None = None,
        observer: Observer | None = None,
    ) -> Self:
        """Return a store on PostgreSQL with a pool of its own, opened on entering.

        Args:
            dsn: connection string or URL of libpq
                (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING).
                Where it has no connect_timeout, nor the environment, a new connection has 10 s.
            schema: the schema of the store's tables; any name, quoted wherever it is used.
            min_size: connections that are kept open.
            max_size: most connections; a unit of work uses at most one at a time.
            timeout: seconds to wait for a free connection, then StoreTimeout.
            prepare_threshold: after how many uses the server keeps a statement prepared; None,
                never, is for poolers in transaction mode before PgBouncer 1.21.
            coalesce: store appends that wait at the same time by one statement (group commit):
                more turns a second where many tasks of this process append at once. Each gets
                its own result or error, and those of one conversation keep their order; a turn
                that comes alone goes as it does without. Appends that expect a version, and
                units of several writes, do not join. See docs/how-to/many-writers.md.
            row_security: tell the server for whom each unit of work acts, and have it see to it
                that the unit meets no row of others. It has to be switched on in the database by
                `migrate(row_security=True)`; units of work without a user_id, imports and
                `coalesce` are refused. See docs/how-to/row-security.md.
            retry: how often and how long units of work are tried again that the server gave up,
                and asked for whose answer was lost; by default as `Retry()` says.
            observer: is told what units of work and service functions do, such as
                `conversation_store.adapters.otel.OpenTelemetryObserver()`; None: nobody is. See
                docs/how-to/tracing.md.

        Raises StoreMisconfigured for a schema that cannot be, and for `coalesce` with
        `row_security`.

        Entering raises StoreUnavailable at once where the server cannot be reached, and
        StoreMisconfigured where the connection string cannot be read.
        """
        from .adapters.postgres.store import PostgresStore, new_pool

        pool = new_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            prepare_threshold=prepare_threshold,
        )
        store = PostgresStore(
            pool,
            schema,
            dsn=dsn,
            coalesce=coalesce,
            row_security=row_security,
            retry=retry,
            observer=_guarded(observer),
        )
        return cls(store)

    @classmethod
    def from_pool(
        cls,
        pool: AsyncConnectionPool[Any],
        *,
        schema: str = "operational",
        coalesce: bool = False,
        row_security: bool = False,
        retry: Retry | None = None,
        observer: Observer | None = None,
    ) -> Self:
        """Return a store over a pool of the host's, which the host opens and closes.

        Connections are given back as they were lent: same autocommit, same isolation level. For
        `schema`, `coalesce`, `row_security`, `retry` and `observer` see `connect`; the observer is
        told how long connections are waited for, but not of the pool, which is the host's.
        """
        from .adapters.postgres.store import PostgresStore

        store = PostgresStore(
            pool,
            schema,
            coalesce=coalesce,
            row_security=row_security,
            retry=retry,
            observer=_guarded(observer),
        )
        return cls(store)

    @classmethod
    def in_memory(
        cls,
        *,
        clock: Callable[[], datetime] | None = None,
        lock_timeout: float | None = 5.0,
        row_security: bool = False,
        retry: Retry | None = None,
        observer: Observer | None = None,
    ) -> Self:
        """Return the twin: a store in memory that behaves as the one on PostgreSQL does.

        Args:
            clock: gives the time, aware; by default the system's, in UTC.
            lock_timeout: seconds that a write waits for another unit of work, then StoreTimeout;
                what `lock_timeout` is to PostgreSQL. None waits for ever.
            row_security: refuse what a store on PostgreSQL with row_security refuses.
            retry: as in `connect`.
            observer: as in `connect`; nothing is sent here, so it is told of no round trips.
        """
        from .adapters.memory.store import InMemoryStore

        store = InMemoryStore(
            clock, lock_timeout, retry, row_security=row_security, observer=_guarded(observer)
        )
        return cls(store)

    async def __aenter__(self) -> Self:
        """Open what the store owns."""
        await self._adapter.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what the store owns."""
        await self._adapter.close()

    def unit_of_work(
        self,
        *,
        user_id: str | None = None,
        connection: AsyncConnection[Any] | None = None,
        timeout: float | None = None,
    ) -> AsyncUnitOfWork:
        """Return a new unit of work; it sends nothing until it is used.

        Args:
            user_id: act for this user alone: what belongs to others does not exist. May not be
                left out where the store has row_security.
            connection: do it on this connection of the host's. Inside a transaction of the
                host's the unit is a savepoint of that, and the host commits; on an idle
                connection it is a transaction of its own.
            timeout: seconds, counted from entering it, in which all that it waits for ends: the
                pool, the server, locks, tries. Then StoreTimeout, and nothing is stored; or
                CommitOutcomeUnknown where that cannot be known. It is the server's
                statement_timeout in the unit's transaction as well. None: no limit but others'.

        Raises: InvalidConversation for a user_id, InvalidLimit for a timeout that cannot be;
        UnitOfWorkMisuse for no user_id where the store has row_security.
        """
        return self._adapter.unit_of_work(user_id, connection, timeout)

    async def run(
        self, work: Callable[[AsyncUnitOfWork], Awaitable[T]], *, user_id: str | None = None
    ) -> T:
        """Do work in one unit of work, and again in a new one when the server gave it up.

        For work that reads, decides and writes: `work` is given the unit of work, entered, and its
        result is returned. It may be done several times, so what it does outside the unit must
        bear that. A single service function, or any unit that is one flush, needs no `run`: the
        store tries it again by itself.

        Args:
            work: what to do.
            user_id: act for this user alone.

        Raises: what the last try raised; its `tried` holds the errors of those before.
        """
        return await run_unit(lambda: self.unit_of_work(user_id=user_id), work, self._adapter.retry)

    async def migrate(
        self,
        *,
        id_block: int = 1000,
        connection: AsyncConnection[Any] | None = None,
        row_security: bool = False,
        application_role: str | None = None,
        read_only_role: str | None = None,
        maintenance_role: str | None = None,
    ) -> list[str]:
        """Bring the database to what this version needs; return the names of what was applied.

        Safe when many processes do it at once. Each migration is one transaction, and so are row
        security and the roles together. A role that is named is given what its work needs, each
        time, and no more: what else it had on the schema and on what is the store's is taken away,
        and so is what everybody had on the latter, and CREATE on the schema. See
        docs/how-to/run-migrations.md.

        Args:
            id_block: how many ids a process draws at a time, 1..1000000; counts when the
                sequence is made, on the first migration.
            connection: do it on this connection of the host's, inside its transaction if there
                is one.
            row_security: let PostgreSQL, too, keep users apart, see docs/how-to/row-security.md.
                False leaves it as it is. Applied as "row_security", unless it is on already.
            application_role: may do what the service functions do.
            read_only_role: may read.
            maintenance_role: may do what the application may, with everybody's rows; it must have
                BYPASSRLS.

        Raises: StoreMisconfigured where the database is newer than this code, an applied file
        has changed since, the role that migrates lacks a privilege, or one that is named does not
        exist, is the owner, a superuser, or a member of those, or bypasses row security where
        it must not, or does not where it must.
        """
        roles = _named(application_role, read_only_role, maintenance_role)
        return await self._adapter.migrate(
            id_block, connection, row_security=row_security, roles=roles
        )

    @staticmethod
    def migration_sql(
        *,
        schema: str = "operational",
        id_block: int = 1000,
        row_security: bool = False,
        application_role: str | None = None,
        read_only_role: str | None = None,
        maintenance_role: str | None = None,
    ) -> str:
        """Return the SQL that `migrate` would run on an empty database, for the host's own tool.

        To be run in one transaction; it records itself, so that `migrate` then finds nothing to
        do. Raises StoreMisconfigured for a schema, a block or a role that cannot be.
        """
        from .adapters.postgres.migrate import migration_sql

        roles = _named(application_role, read_only_role, maintenance_role)
        return migration_sql(schema, id_block, row_security=row_security, roles=roles)

    async def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable or StoreTimeout. Round trips: 1."""
        await self._adapter.ping()


def _guarded(observer: Observer | None) -> GuardedObserver | None:
    return None if observer is None else GuardedObserver(observer)


def _named(
    application_role: str | None, read_only_role: str | None, maintenance_role: str | None
) -> dict[str, str]:
    """Return the roles that are named, by their keywords."""
    roles = {
        "application_role": application_role,
        "read_only_role": read_only_role,
        "maintenance_role": maintenance_role,
    }
    return {keyword: name for keyword, name in roles.items() if name is not None}
