"""Names, keys, tokens, signed documents and the ledger. Bytes and keys in, values or errors out: no I/O, no clock.

Read in this order:

1. `plain`, `names`, `encoding`, `jose`, `keys`, `weak_keys`, `hosts`: the basic values
2. `tokens.claims` (the checks that all tokens share) and `tokens.bearer`; `tokens.request`, `tokens.transaction` and
   `tokens.event`; `tokens.proof` and `tokens.assertion`; foreign issuers' tokens: `tokens.oidc`, `tokens.introspection`
3. `issuer_trust`, `policies`, `join`: what operators set and hand over
4. `ledger.merkle`, `ledger.entries`, `ledger.checkpoint`, `ledger.evidence`: what the registry records, and its proofs
5. `documents.frame` (how documents are signed and read), `documents.key_set`; most other kinds have the structure of
   `key_set`, a `LedgerFrame`. `registry_keys` and `changes` are a plain `Frame`; `history_statement` has no frame
6. `problem_document`: the answer to a refused request

A module imports only modules of its own step and of earlier ones.

docs/protocol.md describes the same for readers who do not read Python.
"""
