"""The twin: the store in memory, held equal to the one on PostgreSQL by one contract suite."""
