"""The service layer: the unit of work and the functions that hosts call."""
