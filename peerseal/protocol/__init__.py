"""Names, keys, tokens and signed documents. Bytes and keys in, values or errors out: no I/O, no clock.

Read in this order: `names`, `encoding`, `keys`, `jose`; `tokens.request`; `documents.frame`;
`policies`; `ledger.entries`, `ledger.checkpoint`, `ledger.merkle`.
"""
