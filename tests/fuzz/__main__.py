"""The long run: at least so many steps, from a seed, each round of programs from the next.

A run that fails prints the program that shows the difference, made as short as can be, and what
was done and answered in it.
"""

from __future__ import annotations

import argparse
import random
import time

from server_under_test import test_server

from .running import machine, run

PROGRAMS_OF_A_ROUND = 50


def main(least: int, seed: int, *, shorten: bool) -> None:
    """Run at least `least` steps."""
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with test_server() as server, machine(server.dsn) as programs:
        steps = programs.steps
        try:
            while _done(steps) < least:
                run(programs, PROGRAMS_OF_A_ROUND, seed=seed, shorten=shorten)
                seed += 1
                seconds = time.monotonic() - began
                print(f"{_done(steps)} steps in {seconds:.0f} s; to go on: SEED={seed}", flush=True)
        finally:
            for name, count in sorted(steps.items()):
                print(f"{count:8} {name}")
            print(f"{_done(steps):8} steps on both sides")


def _done(steps: dict[str, int]) -> int:
    """Return how many steps were done; what is told in brackets is no step."""
    return sum(count for name, count in steps.items() if not name.startswith("("))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--as-found", action="store_true", help="do not make a program that fails shorter"
    )
    given = parser.parse_args()
    main(given.steps, given.seed, shorten=not given.as_found)
