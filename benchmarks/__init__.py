"""What the store costs, measured beside others on the same server in the same run."""
