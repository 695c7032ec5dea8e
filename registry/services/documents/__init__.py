"""The public answers: signed documents, changes, and the ledger."""
