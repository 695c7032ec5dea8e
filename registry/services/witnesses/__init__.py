"""Has witnesses cosign the checkpoints of the ledger, and serves what they cosign."""
