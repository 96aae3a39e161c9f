"""The command line: `python -m benchmarks`, and `python -m benchmarks report`."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from .contenders.registry import OURS, PEERS, load_contenders
from .dialogues import PROJECT, made_up, read_dialogues
from .durable_server import durable_server
from .plan import FULL, QUICK
from .run import Run
from .scenarios import SCENARIOS

RESULTS = PROJECT / "benchmarks" / "results"
PARTS = ("cells", "bulk", "writers", "growth")


def main() -> None:
    """Run what the arguments say."""
    arguments = _arguments()
    if arguments.command == "report":
        from .report import write_all

        write_all(arguments.out)
        return
    contenders, missing = load_contenders(arguments.only)
    for key, why in missing.items():
        print(f"left out: {key} ({why})", file=sys.stderr)
    plan = QUICK if arguments.quick else FULL
    dialogues = made_up() if arguments.made_up else read_dialogues()
    print(
        f"{plan.name} run, seed {arguments.seed}, {', '.join(contenders)}; {plan.rounds} rounds of "
        f"{plan.slice_seconds:g} s, {', '.join(map(str, plan.tasks))} at once over "
        f"{plan.connections} connections; dialogues: {dialogues.origin}"
    )
    warnings.simplefilter("ignore")  # of the libraries of others
    with durable_server() as dsn:
        run = Run(dsn, contenders, plan=plan, dialogues=dialogues, seed=arguments.seed, say=_say)
        asyncio.run(run.go(arguments.scenarios, set(arguments.parts)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "contenders.json"
    file.write_text(json.dumps(run.results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{file} is written; now: python -m benchmarks report")


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    def names(known: list[str]) -> Callable[[str], list[str]]:
        def read(text: str) -> list[str]:
            chosen = text.split(",")
            if unknown := set(chosen) - set(known):
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
            return [name for name in known if name in chosen]

        return read

    every = [*OURS, *PEERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "report"], default="run")
    parser.add_argument("--quick", action="store_true", help="everything, in three minutes")
    parser.add_argument("--only", type=names(every), default=every, help="some contenders")
    parser.add_argument("--scenarios", type=names([*SCENARIOS]), default=[*SCENARIOS])
    parser.add_argument("--parts", type=names([*PARTS]), default=[*PARTS])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--made-up", action="store_true", help="not the real dialogues")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
