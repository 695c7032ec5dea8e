"""The ledger: its entries, the tree over them, the signed checkpoints, and the evidence of each entry."""
