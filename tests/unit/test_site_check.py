"""The check of the documentation site finds what would be wrong with one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import site_check
from site_check import Site

import conversation_store

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
IMPORT = re.compile(r"^   from conversation_store\.([\w.]+) import (.+)$", re.MULTILINE)
HEADER = b"# The remainder of this file is compressed using zlib.\n"
START = '<body><div class="sidebar-tree"><div><a href="a.html">A</a></div></div></body>'


def built(folder: Path, files: Mapping[str, str], names: tuple[str, ...] = ()) -> Site:
    """Return a site of a start page, a page `a`, what else is given, and an inventory of names."""
    for path, text in {"docs/index.html": START, "docs/a.html": "<p id='here'>A", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    entries = "\n".join(f"{name} py:class 1 docs/a.html#$ -" for name in names)
    (folder / "objects.inv").write_bytes(HEADER + zlib.compress(entries.encode()))
    return Site(folder)


def test_a_name_that_is_not_described_is_told(tmp_path: Path) -> None:
    """One entry is enough for a member that several classes have."""
    site = built(tmp_path, {}, ("pkg.Here", "pkg.Base.member"))
    wanted = [{"pkg.Here"}, {"pkg.Base.member", "pkg.Heir.member"}, {"pkg.Gone"}]

    assert [*site_check.not_described(site, wanted)] == ["pkg.Gone is not in the reference"]


def test_a_new_public_name_has_to_be_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the package count, and what its classes have, their fields and bases too."""

    class Novelty:
        field: int

        def method(self) -> None: ...

    Novelty.__module__ = "conversation_store.domain.novelty"
    names = [*conversation_store.__all__, "Novelty"]
    before = {*map(frozenset, site_check.names_to_describe())}
    monkeypatch.setattr(conversation_store, "__all__", names)
    monkeypatch.setattr(conversation_store, "Novelty", Novelty, raising=False)

    assert {*map(frozenset, site_check.names_to_describe())} - before == {
        frozenset({"conversation_store.Novelty"}),
        frozenset({"conversation_store.Novelty.field"}),
        frozenset({"conversation_store.Novelty.method"}),
    }


@pytest.mark.parametrize(
    "name",
    [
        "conversation_store.ConversationStore.connect",
        "conversation_store.Message.is_redacted",
        "conversation_store.Status.CLOSED",
        "conversation_store.ConversationRecord.start_time",
        "conversation_store.InvalidRecord.offset",
        "conversation_store.MessageRepository.latest",
        "conversation_store.adapters.store_thread.StoreThread.wait_for",
        "conversation_store.adapters.openai_agents.AgentsSession.pop_item",
        "conversation_store.adapters.postgres.embedded.EmbeddedPostgres.dsn",
        "conversation_store.entrypoints.pytest_plugin.conversation_store_on_server",
        "conversation-store-migrate.--row-security",
        "conversation-store-show.CONVERSATION_ID",
    ],
)
def test_what_hosts_use_has_to_be_described(name: str) -> None:
    """Methods, properties, members of enums, keys of records, attributes of errors, fixtures."""
    assert any(name in alternatives for alternatives in site_check.names_to_describe())


def test_what_is_private_has_not_to_be_described() -> None:
    """Neither what begins with an underscore, nor helpers of modules of which a part is public."""
    names = {name for each in site_check.names_to_describe() for name in each}

    assert "conversation_store.__version__" in names
    assert not [name for name in names if "._" in name.replace(".__version__", "")]
    assert "conversation_store.adapters.history.words_of" not in names


def test_the_reference_shows_how_to_import_what_is_there() -> None:
    """Each line of it that imports names a module and what that defines, for a module that is."""
    texts = [file.read_text("utf-8") for file in REFERENCE.rglob("*.rst")]
    lines = [line for text in texts for line in IMPORT.findall(text)]
    there = [line for line in lines if site_check.file_of(line[0]).exists()]

    assert there
    for module, names in there:
        defined = {name for each in site_check.names_of_module(module) for name in each}
        assert {f"conversation_store.{module}.{name}" for name in names.split(", ")} <= defined


def test_an_entry_that_says_nothing_is_told(tmp_path: Path) -> None:
    """An attribute without a docstring is a name and a type, and no more."""
    entry = '<dt class="sig sig-object py" id="pkg.{0}"><span>x</span></dt>\n<dd>{1}</dd>'
    page = entry.format("Told", "<p>All.</p>") + entry.format("Mute", "")

    assert [*site_check.described_by_nothing(built(tmp_path, {"docs/a.html": page}))] == [
        "docs/a.html: pkg.Mute has no docstring"
    ]


def test_a_page_that_the_navigation_does_not_lead_to_is_told(tmp_path: Path) -> None:
    """A link in the text is not enough; indexes and the start page itself need none."""
    pages = {"docs/a.html": '<a href="b.html">B</a>', "docs/b.html": "B", "search.html": ""}

    assert [*site_check.not_reached(built(tmp_path, pages))] == [
        "docs/b.html is not in the navigation"
    ]


@pytest.mark.parametrize(
    ("link", "is_lost"),
    [
        ("#there", False),
        ("index.html", False),
        ("../docs/a.html#there", False),
        ("../_downloads/x.py", False),
        ("https://example.org/nowhere", False),
        ("#nowhere", True),
        ("a.html#nowhere", True),
        ("b.html", True),
        ("../_downloads/y.py", True),
    ],
)
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, link: str, is_lost: bool) -> None:
    """To a page, to a place in one, to a file; where others' links lead is not asked."""
    files = {"docs/a.html": f'<p id="there"><a href="{link}">x</a>', "_downloads/x.py": ""}
    expected = [f"docs/a.html: {link} leads nowhere"] if is_lost else []

    assert [*site_check.lost_links(built(tmp_path, files))] == expected


@pytest.mark.parametrize(
    ("path", "text", "address"),
    [
        ("docs/a.html", '<script src="{}"></script>', "https://example.org/x.js"),
        ("docs/a.html", '<link rel="stylesheet" href="{}">', "//example.org/x.css"),
        ("docs/a.html", '<img src="{}">', "http://example.org/x.png"),
        ("docs/a.html", '<img src="{}">', "../_images/gone.png"),
        ("_static/x.css", "@font-face {{ src: url({}) }}", "https://example.org/x.woff2"),
        ("_static/x.css", '@import "{}"', "https://example.org/x.css"),
        ("_images/x.svg", '<image xlink:href="{}"/>', "https://example.org/x.png"),
    ],
)
def test_what_is_fetched_from_elsewhere_is_told(
    tmp_path: Path, path: str, text: str, address: str
) -> None:
    """Scripts, styles, fonts and pictures are files of the site."""
    site = built(tmp_path, {path: text.format(address)})

    assert [*site_check.fetched_from_elsewhere(site)] == [f"{path} loads {address}"]


def test_what_is_there_is_not_told(tmp_path: Path) -> None:
    """A style and a picture of the site's own, one within the page, a link to follow."""
    page = (
        '<link rel="stylesheet" href="../_static/x.css?v=1"><img src="../_images/x.svg">'
        '<img src="data:image/svg+xml,x"><a href="https://example.org">x</a>'
    )
    files = {"docs/a.html": page, "_static/x.css": "a { color: red }", "_images/x.svg": "<svg/>"}

    assert [*site_check.fetched_from_elsewhere(built(tmp_path, files))] == []
