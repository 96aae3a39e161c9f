"""What a host can call: found by looking, so that nothing new is left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import conversation_store
from conversation_store import AsyncUnitOfWork, ConversationRepository, MessageRepository


def service_functions(package: Any = conversation_store) -> dict[str, Callable[..., Any]]:
    """Return the public functions that take a unit of work."""
    names: list[str] = package.__all__
    return {
        name: function
        for name in names
        if inspect.isfunction(function := getattr(package, name))
        if next(iter(inspect.signature(function).parameters), "") == "uow"
    }


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods of a class."""
    return {
        name: member
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def repository_methods() -> dict[str, Callable[..., Any]]:
    """Return the public methods of the repositories, as a unit of work shows them."""
    kinds = {"conversations": ConversationRepository, "messages": MessageRepository}
    return {
        f"{kind}.{name}": method
        for kind, port in kinds.items()
        for name, method in methods(port).items()
    }


def unit_methods() -> dict[str, Callable[..., Any]]:
    """Return the public methods of a unit of work."""
    return methods(AsyncUnitOfWork)


def everything(package: ModuleType | Any = conversation_store) -> dict[str, Callable[..., Any]]:
    """Return all that the table of attempts has to try."""
    return service_functions(package) | repository_methods()
