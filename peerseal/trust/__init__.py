"""Whose keys this process believes: fetched from the registry, checked, cached and renewed.

Read in this order: `store`, which answers verifiers; `beliefs`, the pure values; `shelf`, the cache of one kind of
document, with `shelves`; `documents`, which fetches and checks them against `seen_ledger`, with `key_set_parts`,
`replaced_ledger` and the copies in `disk`; `changes` and `background`, which renew them; `awake` and `confirmation`,
for restarts and suspensions.

`TrustStore` makes these parts; an arrow leads to a part that is called::

    TrustStore ─────┬→ each shelf: KeyShelf, PolicyShelf, DomainShelf, StatementShelf
                    └→ BackgroundThread → Renewal
    KeyShelf ───────→ PartReader → DocumentReader
    each shelf ─────┬→ DocumentReader
                    └→ Confirmation (asks the registry after a break)
    Renewal ────────┬→ ChangesFollower
                    ├→ Confirmation (hands over each list of changes)
                    └→ each shelf (confirms or renews its documents)
    Confirmation ───┬→ ChangesFollower
                    └→ Renewal.followed (the entry to ask from)
    ChangesFollower ┬→ DocumentReader
                    └→ SharedChanges (one process asks for its host)
    DocumentReader ─┬→ HttpFetcher → the registry and its mirrors
                    ├→ CopyFolder (copies on disk)
                    ├→ SeenLedger (the newest checkpoint)
                    └→ ReplacedLedgers → its ``caches``: each shelf, and Confirmation
"""
