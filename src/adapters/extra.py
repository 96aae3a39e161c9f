"""What to install where the library of an extra is missing."""

from __future__ import annotations

from types import TracebackType


class Extra:
    """An extra of the package: `with Extra("otel"): import …` names it where that fails."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        """Let the imports begin."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise ModuleNotFoundError, with what to do, for a module that is not there."""
        if isinstance(exc, ModuleNotFoundError):
            needed = f'this needs pip install "conversation-store[{self._name}]"'
            raise ModuleNotFoundError(f"{exc}: {needed}", name=exc.name, path=exc.path) from exc
