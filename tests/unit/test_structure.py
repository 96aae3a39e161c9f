"""The shape of the package: who may import whom, what is public, and what an import does."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import conversation_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PACKAGE = Path(conversation_store.__file__).parent
PROJECT = Path(__file__).resolve().parents[2]
GLOSSARY = PROJECT / "docs" / "glossary.md"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400

LAYERS = {
    # module: (what it may import of ours, what it may import of others)
    "": ({"bootstrap", "domain", "service_layer"}, set[str]()),
    "__main__": ({"entrypoints"}, set[str]()),
    "domain": ({"domain"}, {"attrs"}),
    "service_layer": ({"domain", "service_layer"}, {"attrs"}),
    "adapters.memory": ({"domain", "service_layer", "adapters.memory"}, {"attrs"}),
    "adapters.postgres": (
        {"domain", "service_layer", "adapters.postgres"},
        {"attrs", "psycopg", "psycopg_pool"},
    ),
    "adapters.postgres.embedded": (set[str](), set[str]()),
    "adapters.google_adk": (
        {"adapters.extra", "adapters.google_adk_layout", "adapters.google_adk_sessions"}
        | {"adapters.google_adk_states", "adapters.store_thread"},
        {"google"},
    ),
    "adapters.google_adk_layout": (
        {"domain", "adapters.history"},
        {"attrs", "google", "pydantic_core"},
    ),
    "adapters.google_adk_sessions": (
        {"domain", "service_layer", "adapters.pages", "adapters.store_thread"}
        | {"adapters.google_adk_layout", "adapters.google_adk_states"},
        {"attrs", "google", "pydantic"},
    ),
    "adapters.google_adk_states": (
        {"domain", "service_layer", "adapters.google_adk_layout", "adapters.store_thread"},
        {"attrs"},
    ),
    "adapters.extra": (set[str](), set[str]()),
    "adapters.store_thread": ({"domain", "service_layer"}, set[str]()),
    "adapters.pages": ({"domain", "service_layer"}, set[str]()),
    "adapters.history": (
        {"domain", "service_layer", "adapters.pages", "adapters.store_thread"},
        set[str](),
    ),
    "adapters.langchain": (
        {"adapters.extra", "domain", "adapters.history", "adapters.store_thread"},
        {"langchain_core"},
    ),
    "adapters.llama_index": (
        {
            "adapters.extra",
            "domain",
            "adapters.history",
            "adapters.llama_index_chats",
            "adapters.store_thread",
        },
        {"llama_index"},
    ),
    "adapters.llama_index_chats": (
        {"domain", "service_layer", "adapters.history", "adapters.store_thread"},
        {"llama_index", "pydantic_core"},
    ),
    "adapters.openai_agents": (
        {"adapters.extra", "domain", "adapters.history", "adapters.store_thread"},
        {"agents"},
    ),
    "adapters.pydantic_ai": (
        {"adapters.extra", "domain", "adapters.history", "adapters.store_thread"},
        {"pydantic_ai"},
    ),
    "adapters.pydantic_ai_store": (
        {"adapters.extra", "domain", "service_layer", "adapters.history"}
        | {"adapters.store_thread", "adapters.pydantic_ai"},
        {"pydantic", "pydantic_ai"},
    ),
    "adapters.otel": ({"adapters.extra", "domain", "service_layer"}, {"attrs", "opentelemetry"}),
    "adapters": (set[str](), set[str]()),
    "bootstrap": (
        {"domain", "service_layer", "adapters.memory.store"}
        | {"adapters.postgres.store", "adapters.postgres.migrate"},
        {"psycopg", "psycopg_pool"},
    ),
    "entrypoints": (
        {"", "bootstrap", "domain", "entrypoints", "service_layer"}
        | {"adapters.postgres.embedded"}  # the demo brings its server
        | {"adapters.postgres.examination", "adapters.postgres.findings"},  # doctor needs no store
        {"attrs", "click", "rich"},
    ),
    "entrypoints.browse": (
        {"bootstrap", "domain", "entrypoints", "service_layer"},
        {"rich", "textual"},
    ),
    "entrypoints.pytest_plugin": (
        {"bootstrap", "domain", "adapters.postgres.embedded"}
        | {"adapters.postgres.connection_string"},  # says whether it can be read
        {"psycopg", "pytest", "pytest_asyncio"},
    ),
}
"""The most specific entry counts."""

DRIVER = {"psycopg", "psycopg_pool"}


class Import(NamedTuple):
    """One import statement, or one name of it."""

    file: Path
    line: int
    level: int
    """0: absolute."""
    name: str
    """The module imported; of ours without the name of the package."""
    at_run_time: bool
    """Not under `if TYPE_CHECKING:`."""
    eager: bool
    """Run when the module is loaded, not when a function is called."""

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line} imports {self.name or 'the package'}"


def module_of(file: Path) -> str:
    """Return the dotted name of a file of the package, without the package's own."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, layer: str) -> bool:
    """Return whether a module is a layer or a part of it."""
    return module == layer or (layer != "" and module.startswith(f"{layer}."))


def layer_of(module: str) -> str:
    """Return the entry of LAYERS that a module falls under."""
    return max((layer for layer in LAYERS if is_within(module, layer)), key=len)


def names_imported(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    """Return the modules that a statement in a package of ours imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) - node.level + 1] if node.level else []
    name = ".".join([*base, *filter(None, [node.module])])
    if node.module is not None:
        return [name]
    inner = [".".join([*base, alias.name]) for alias in node.names]  # from . import sql
    return [each if each in MODULES else name for each in inner]


def imports_of(file: Path, package: list[str]) -> Iterator[Import]:
    """Give all imports of a file, wherever they stand."""

    def visit(node: ast.AST, *, at_run_time: bool, eager: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            level = getattr(node, "level", 0)
            for name in names_imported(node, package):
                yield Import(file, node.lineno, level, name, at_run_time, eager)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(
                child,
                at_run_time=at_run_time and not typing_only,
                eager=eager and not typing_only and not late,
            )

    yield from visit(ast.parse(file.read_text("utf-8")), at_run_time=True, eager=True)


def package_of(file: Path) -> list[str]:
    """Return the parts of the name of the package that a file of ours belongs to."""
    return list(file.relative_to(PACKAGE).parts[:-1])


MODULES = {module_of(file) for file in FILES}
IMPORTS = [each for file in FILES for each in imports_of(file, package_of(file))]


def test_inside_the_package_its_own_modules_are_imported_relatively() -> None:
    """Every import of our own is relative, so that the tree also runs vendored."""
    absolute = [
        str(each)
        for each in IMPORTS
        if each.level == 0 and each.name.split(".")[0] in {"conversation_store", "src"}
    ]

    assert absolute == []


def test_a_layer_imports_only_the_layers_below_it() -> None:
    """The direction is domain <- service_layer <- adapters <- bootstrap <- entrypoints."""
    wrong = []
    for each in IMPORTS:
        if each.level:
            layer = layer_of(module_of(each.file))
            allowed, _ = LAYERS[layer]
            if not any(is_within(each.name, other) for other in allowed):
                wrong.append(f"{layer or 'the package'}: {each}")

    assert wrong == []


def test_a_layer_imports_only_the_libraries_it_may_know() -> None:
    """The domain knows attrs, the PostgreSQL adapter the driver, the command line its tools."""
    wrong = []
    for each in IMPORTS:
        library = each.name.split(".")[0]
        if each.level == 0 and library not in sys.stdlib_module_names:
            layer = layer_of(module_of(each.file))
            _, allowed = LAYERS[layer]
            if library not in allowed:
                wrong.append(f"{layer or 'the package'}: {each}")

    assert wrong == []


def test_the_composition_root_loads_adapters_late_and_the_driver_never() -> None:
    """Adapters are imported in functions; the driver's names are there for type checkers only."""
    root = [each for each in IMPORTS if module_of(each.file) == "bootstrap"]
    adapters = [each for each in root if each.level and is_within(each.name, "adapters")]
    drivers = [each for each in root if each.name.split(".")[0] in DRIVER]

    assert adapters
    assert [str(each) for each in adapters if each.eager] == []
    assert [str(each) for each in drivers if each.at_run_time] == []


def test_nothing_imports_the_folder_by_its_name() -> None:
    """`src` is a place, not a module: tests, examples and benchmarks name the package."""
    folders = ("tests", "examples", "benchmarks", "docs")
    files = [file for folder in folders for file in sorted((PROJECT / folder).rglob("*.py"))]
    named = [
        str(each)
        for file in files
        for each in imports_of(file, [])
        if each.level == 0 and each.name.split(".")[0] == "src"
    ]

    assert files
    assert named == []
    assert [name for name in sys.modules if name.split(".")[0] == "src"] == []


def test_modules_are_short() -> None:
    """No module is longer than a reader can keep in mind."""
    lengths = {module_of(file): len(file.read_text("utf-8").splitlines()) for file in FILES}

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_modules_have_names_that_say_what_is_in_them() -> None:
    """No module or folder is called after the fact that something had to go somewhere."""
    vague = r"(?i)utils?|helpers?|managers?|common|misc|base"
    names = {part for file in FILES for part in file.relative_to(PACKAGE).with_suffix("").parts}

    assert {name for name in names if re.fullmatch(vague, name)} == set()


# What an import does ------------------------------------------------------------------------------

PROBE = """
import json, logging, os, sys, threading

seen = []

class Watched(dict):
    def __init__(self, plain): super().__init__(plain)
    def __getitem__(self, key): seen.append(f"reads {key!r}"); return super().__getitem__(key)

def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes and "__pycache__" not in str(args[0]):
        seen.append(f"writes {args[0]}")
    elif event.split(".")[0] in ("socket", "subprocess") and event != "socket.__new__":
        seen.append(event)

sys.addaudithook(watch)
os.environ._data = Watched(os.environ._data)
before = logging.root.level, list(logging.root.handlers), threading.active_count()
import conversation_store
after = logging.root.level, list(logging.root.handlers), threading.active_count()
ours = [s for s in seen if not s.startswith("reads") or "CONVERSATION" in s or "b'PG" in s]
levels = {n: l.level for n, l in logging.root.manager.loggerDict.items() if getattr(l, "level", 0)}
print(json.dumps([sorted(sys.modules), ours, before == after, levels]))
"""


def test_importing_the_package_loads_no_driver_and_does_nothing_else() -> None:
    """No driver, no command line, no warning, no environment, no files, no loggers, no threads."""
    command = [sys.executable, "-W", "error", "-c", PROBE]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    modules, effects, as_before, levels = json.loads(said.stdout)
    loaded = {name.split(".")[0] for name in modules}

    assert said.stderr == ""
    assert loaded & {"psycopg", "psycopg_pool", "click", "rich", "opentelemetry", "src"} == set()
    assert [name for name in modules if name.startswith("conversation_store.adapters.")] == []
    assert effects == []
    assert as_before
    assert levels == {}


# What is public -----------------------------------------------------------------------------------

PUBLIC = [name for name in conversation_store.__all__ if name != "__version__"]


def test_the_public_names_are_listed_and_sorted() -> None:
    """`__all__` is what the package defines, in order, and nothing else."""
    defined = {
        name
        for name, value in vars(conversation_store).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert conversation_store.__all__ == sorted(conversation_store.__all__)
    assert set(PUBLIC) == defined


@cache
def imported_names(module: ModuleType) -> dict[str, str]:
    """Return the names that a module imports, for type checkers too, and from which library."""
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom):
            library = "" if node.level else (node.module or "").split(".")[0]
            names |= {alias.asname or alias.name: library for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name).split(".")[0]: alias.name.split(".")[0]
                for alias in node.names
            }
    return names


def names_in(annotation: object) -> set[str]:
    """Return the plain names in an annotation."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__forward_arg__", "")
    tree = ast.parse(text, mode="eval")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def signatures_of(public: Any) -> Iterator[tuple[str, object, dict[str, Any]]]:
    """Give all signatures that a public object shows: where, the owner, the annotations."""
    if inspect.isfunction(public):
        yield public.__name__, public, public.__annotations__
    elif inspect.isclass(public):
        for owner in public.__mro__:
            if not owner.__module__.startswith("conversation_store"):
                continue
            fields = inspect.get_annotations(owner)
            shown = {name: kind for name, kind in fields.items() if not name.startswith("_")}
            yield public.__name__, owner, shown
            for name, member in vars(owner).items():
                inner = member.fget if isinstance(member, property) else member
                inner = getattr(inner, "__func__", inner)
                if inspect.isfunction(inner) and not name.startswith("_"):
                    yield f"{public.__name__}.{name}", owner, inner.__annotations__


def test_public_signatures_mention_only_public_types() -> None:
    """Whatever a host can be given or asked for, it can also import and annotate."""
    hidden: set[str] = set()
    for public_name in PUBLIC:
        for where, owner, shown in signatures_of(getattr(conversation_store, public_name)):
            module = sys.modules[owner.__module__]
            names = {name for each in shown.values() for name in names_in(each)}
            for name in names - set(PUBLIC) - set(vars(builtins)):
                library = imported_names(module).get(name, "")
                is_variable = type(vars(module).get(name)).__name__ == "TypeVar"
                known = library in sys.stdlib_module_names or library in DRIVER
                if not known and not is_variable:
                    hidden.add(f"{where} mentions {name}")

    assert sorted(hidden) == []


def test_the_package_says_that_it_is_typed() -> None:
    """The marker for type checkers is where they look for it."""
    assert (PACKAGE / "py.typed").is_file()


# The words ----------------------------------------------------------------------------------------


def test_the_tables_have_names_that_the_glossary_knows() -> None:
    """What is called a conversation here is called a conversation there."""
    migrations = (PACKAGE / "adapters" / "postgres" / "migrations").glob("*.sql")
    sql = "\n".join(file.read_text("utf-8") for file in migrations)
    tables = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(?:\S+\.)?(\w+)", sql))
    glossary = GLOSSARY.read_text("utf-8")

    assert tables
    assert {table for table in tables if not re.search(rf"\b{table}\b", glossary)} == set()
