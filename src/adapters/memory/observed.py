"""The unit of work in memory where an observer is told what it does."""

from __future__ import annotations

from ...domain.scope import Scope
from ...service_layer.observed import ObservedUnitOfWork
from ...service_layer.observer import Observer, Tally
from ...service_layer.retry import Retry
from .database import Database
from .unit_of_work import InMemoryUnitOfWork


class ObservedInMemoryUnitOfWork(ObservedUnitOfWork, InMemoryUnitOfWork):
    """A unit of work in memory that tells an observer what it does; it sends nothing."""

    def __init__(
        self,
        observer: Observer,
        database: Database,
        scope: Scope | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        self.observer, self.tally = observer, Tally()
        super().__init__(database, scope, retry, timeout)
