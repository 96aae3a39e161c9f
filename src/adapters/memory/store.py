"""A store in memory: the twin, for tests and trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from ...domain.errors import UnitOfWorkMisuse
from ...domain.scope import Scope
from ...service_layer.observer import Observer
from ...service_layer.retry import Retry
from .database import Database
from .observed import ObservedInMemoryUnitOfWork
from .unit_of_work import InMemoryUnitOfWork


class InMemoryStore:
    """What units of work in one memory share. Belongs to one event loop, like a pool."""

    def __init__(
        self,
        clock: Callable[[], datetime] | None,
        lock_timeout: float | None,
        retry: Retry | None = None,
        *,
        row_security: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._row_security = row_security
        self._database = Database(clock, lock_timeout)
        self.retry = retry or Retry()

    async def open(self) -> None:
        """Nothing is to be opened."""

    async def close(self) -> None:
        """Nothing is to be closed; what is stored goes with the object."""

    def unit_of_work(
        self,
        user_id: str | None = None,
        connection: object = None,
        timeout: float | None = None,
    ) -> InMemoryUnitOfWork:
        """Return a unit of work."""
        if connection is not None:
            raise UnitOfWorkMisuse(reason="a store in memory uses no connection")
        scope = Scope(user_id, self._row_security)
        if self._observer is not None:
            return ObservedInMemoryUnitOfWork(
                self._observer, self._database, scope, self.retry, timeout
            )
        return InMemoryUnitOfWork(self._database, scope, self.retry, timeout)

    async def migrate(
        self,
        id_block: int,  # noqa: ARG002
        connection: object = None,  # noqa: ARG002
        *,
        row_security: bool = False,  # noqa: ARG002
        roles: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> list[str]:
        """Nothing is to be migrated, and memory has no roles."""
        return []

    async def ping(self) -> None:
        """Memory always answers."""
