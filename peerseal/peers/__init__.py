"""Floor 2: one service's state: its own keys, the keys of others, and the verification of callers."""
