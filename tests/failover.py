"""A primary is killed under load and its synchronous replica promoted; what became of the turns.

    python tests/failover.py --runs 10

Each run has servers of its own. The writers name both in their connection string, and ask for the
one that takes writes. The ledger judges on the promoted replica.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from ledger import Ledger, Told, left_in_transaction
from load import Load
from postgres_cluster import Cluster, Server

from conversation_store import ConversationStore


@dataclass
class Run:
    """What was told in one run, and what contradicts it."""

    told: dict[Told, int]
    """Units that the writers were told of, by what they were told."""
    after: int
    """Units that were acknowledged after the kill."""
    seconds: float
    """From the kill to the first of them."""
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.told[told]:4} {told}" for told in Told)
        return (
            f"{counts}; {self.seconds:.1f} s from the kill to the next acknowledged, "
            f"{self.after} in all; violations: {self.violations or 'none'}"
        )


def synchronous_pair(cluster: Cluster) -> tuple[Server, Server]:
    """Start a primary and a replica that it waits for at every commit."""
    primary = cluster.new_server()
    primary.start()
    replica = cluster.replica_of(primary)
    replica.start()
    with primary.connect() as connection:
        # After the replica was copied: promoted, it is to wait for nobody.
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        query = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        while not connection.execute(query).fetchone():
            time.sleep(0.02)
    return primary, replica


def dsn_of(*servers: Server) -> str:
    """Give the connection string of whichever of these servers takes writes."""
    ports = ",".join(str(server.port) for server in servers)
    hosts = ",".join(str(server.cluster.folder) for server in servers)
    return (
        f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"
    )


async def fail_over(number: int) -> Run:
    """Do it once; the moment of the kill is another one in each run."""
    with Cluster() as cluster:
        primary, replica = await asyncio.to_thread(synchronous_pair, cluster)
        dsn = dsn_of(primary, replica)
        ledger = Ledger(replica.dsn)
        async with AsyncExitStack() as stack:
            stores = [
                await stack.enter_async_context(ConversationStore.connect(dsn, coalesce=coalesce))
                for coalesce in (False, True)
            ]
            await stores[0].migrate()
            async with Load(stores, ledger, seed=number) as load:
                await load.acknowledge(200 + 37 * number)
                killed_at = time.monotonic()
                await asyncio.to_thread(primary.kill)
                await asyncio.sleep(0.1)  # for answers that were on their way
                before = load.told["acknowledged"]
                await asyncio.to_thread(replica.promote)
                await load.acknowledge(1)
                seconds = load.acknowledged_at - killed_at
                await load.acknowledge(200)
            open_ones = await left_in_transaction(replica.dsn)
            for store in stores:
                await store.ping()
        told = {told: sum(unit.told is told for unit in ledger.units) for told in Told}
        violations = [*load.surprises, *map(str, open_ones), *ledger.violations()]
        return Run(told, load.told["acknowledged"] - before, seconds, violations)


def main() -> None:
    """Do it so often; end with 1 if there was a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # its pool tells of each connection
    runs = []
    for number in range(1, parser.parse_args().runs + 1):
        runs.append(asyncio.run(fail_over(number)))
        print(f"run {number:2}: {runs[-1]}", flush=True)
    wrong = sum(bool(run.violations) for run in runs)
    acknowledged = sum(run.told[Told.ACKNOWLEDGED] for run in runs)
    print(f"{len(runs)} runs, {acknowledged} units acknowledged, runs with a violation: {wrong}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
