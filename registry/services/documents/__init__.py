"""What everyone may read: signed documents, changes, and the ledger."""
