"""The domain: entities, values, rules, errors and the ports it needs. No I/O, no clock."""
