"""Names, keys, tokens, signed documents and the ledger. Bytes and keys in, values or errors out: no I/O, no clock.

Read in this order:

1. `names`, `encoding`, `keys`, `jose`: what everything is made of
2. `tokens.claims` (the checks that all tokens share), `tokens.request`; the other tokens follow the same shape
3. `ledger.entries`, `ledger.merkle`, `ledger.checkpoint`: what the registry records, and how that is proven
4. `documents.frame` (what all signed documents share), `documents.key_set`; the other documents follow the same shape
5. `policies`, `join`

docs/protocol.md describes the same for readers who do not read Python.
"""
