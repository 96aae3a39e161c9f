"""Who takes part: found by key, and loaded only when asked for."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import version
from typing import Final, TypeAlias

from .contender import Contender

LIMIT: Final = "bare"
"""The contender that the others are measured by."""

ContenderType: TypeAlias = type[Contender]

OURS: Final = {
    "bare": "bare_psycopg",
    "ours": "conversation_store",
    "coalesce": "conversation_store_coalescing",
    "naive": "naive_dao",
}
"""The modules of those that need nothing but this package."""

PEERS: Final = {
    "sqlalchemy": "sqlalchemy_repository",
    "openai": "openai_agents",
    "langchain": "langchain_history",
    "llamaindex": "llama_index_store",
    "adk": "google_adk",
}
"""The modules of those that need the dependency group `bench`."""


def load_contender(key: str) -> ContenderType:
    """Load a contender. Errors: ImportError where what it needs is not installed."""
    module = import_module(f"{__package__}.{(OURS | PEERS)[key]}")
    (contender,) = (
        each
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, Contender)
        and each.__module__ == module.__name__
        and not inspect.isabstract(each)
    )
    found: ContenderType = contender
    return found


def load_contenders(keys: list[str]) -> tuple[dict[str, ContenderType], dict[str, str]]:
    """Load contenders; return those that are there, and why the others are not."""
    there: dict[str, ContenderType] = {}
    missing: dict[str, str] = {}
    for key in keys:
        try:
            there[key] = load_contender(key)
        except ImportError as error:
            missing[key] = str(error)
    return there, missing


def version_of(contender: ContenderType) -> str:
    """Return the version of the distribution that a contender stands for."""
    return version(contender.package)
