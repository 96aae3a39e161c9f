"""The adapters: PostgreSQL, and the twin in memory."""
