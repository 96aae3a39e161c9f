"""The ports, on PostgreSQL and in memory, and a model that needs no network."""
