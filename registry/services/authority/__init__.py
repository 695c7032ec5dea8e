"""In whose name the registry signs, and whether its ledger is the one it was."""
