"""What is built: the wheel holds the package and nothing else, the sdist no link.

CONVERSATION_STORE_DIST names a folder where both were built already; CONVERSATION_STORE_CHECKOUT
the checkout that they were built from, where these tests do not lie in it.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import conversation_store

CHECKOUT = Path(os.environ.get("CONVERSATION_STORE_CHECKOUT", Path(__file__).resolve().parents[2]))
SOURCE = CHECKOUT / "src"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the wheel and the sdist of this checkout."""
    built = os.environ.get("CONVERSATION_STORE_DIST")
    if built:
        return Path(built)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel"]
    subprocess.run([*command, "--outdir", folder, CHECKOUT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """Give the wheel."""
    [wheel] = dist.glob("*.whl")
    return wheel


def source_files() -> list[str]:
    """Return all files of `src`, relative to it, without what Python leaves there."""
    files = (file for file in SOURCE.rglob("*") if file.is_file())
    relative = (file.relative_to(SOURCE) for file in files)
    return sorted(file.as_posix() for file in relative if "__pycache__" not in file.parts)


def test_the_wheel_holds_exactly_the_files_of_the_package(wheel: Path) -> None:
    """Every file of `src` is in it, under the package's name, and nothing is there besides."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    expected = [f"conversation_store/{name}" for name in source_files()]

    assert sorted(names) == expected
    assert "conversation_store/py.typed" in names
    assert any(
        name.startswith("conversation_store/adapters/postgres/migrations/0001_") for name in names
    )


def test_the_wheel_says_what_it_is_and_needs(wheel: Path) -> None:
    """The version is the package's own, stated once; the extras and the licence are there."""
    with zipfile.ZipFile(wheel) as archive:
        [metadata_file] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(metadata_file))
        [entries] = [n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt")]
        commands = archive.read(entries).decode()
    needs = map(Requirement, metadata.get_all("Requires-Dist", []))
    needed = {need.name: need.extras for need in needs if "extra ==" not in str(need.marker)}

    assert metadata["Name"] == "conversation-store"
    assert metadata["Version"] == conversation_store.__version__
    assert metadata["License-Expression"] == "MIT"
    extras = {
        *("google-adk", "langchain", "llama-index", "openai-agents", "pydantic-ai"),
        *("browse", "cli", "dev", "embedded", "otel", "pytest", "test"),
    }
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert needed == {"attrs": set(), "psycopg": {"binary"}, "psycopg-pool": set()}
    assert "conversation-store = " in commands
    assert "[pytest11]\nconversation_store = conversation_store.entrypoints." in commands


def test_the_sdist_has_the_package_once_and_no_link(dist: Path) -> None:
    """The link that editable installs need is never shipped."""
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    top = f"conversation_store-{conversation_store.__version__}"
    names = [member.name.removeprefix(f"{top}/") for member in members]
    in_source = sorted(name.removeprefix("src/") for name in names if name.startswith("src/"))

    assert [member.name for member in members if member.issym() or member.islnk()] == []
    assert [name for name in names if name.startswith("_dev")] == []
    assert in_source == source_files()
    assert {"LICENSE", "README.md", "pyproject.toml"} <= set(names)
