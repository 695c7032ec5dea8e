"""The use cases, one a module. Every change of state is one entry of the ledger, in the same transaction."""
