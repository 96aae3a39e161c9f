"""Finds the benchmarks: a package beside the tests.

Not by a path to the root of the project: `src` lies there too, and is not to be imported.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

_spec = spec_from_file_location(
    "benchmarks", _BENCHMARKS / "__init__.py", submodule_search_locations=[str(_BENCHMARKS)]
)
assert _spec is not None
assert _spec.loader is not None
sys.modules["benchmarks"] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["benchmarks"])
