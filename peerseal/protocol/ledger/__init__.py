"""The ledger: its tree, its signed checkpoints, its entries, and the evidence for each."""
