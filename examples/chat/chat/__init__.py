"""A chat service, hexagonal, that keeps its conversations in conversation-store."""
