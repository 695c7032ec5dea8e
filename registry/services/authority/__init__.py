"""The signing authority of the registry, and the protection of its ledger against a second history."""
