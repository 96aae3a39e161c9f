"""A primary goes and its replica takes over, while many tasks write."""

from __future__ import annotations

from failover import fail_over


async def test_failing_over_to_a_synchronous_replica_loses_and_doubles_nothing() -> None:
    """Every unit that was acknowledged before the kill is on the replica, once."""
    run = await fail_over(1)

    assert run.violations == []
    assert run.after >= 200
