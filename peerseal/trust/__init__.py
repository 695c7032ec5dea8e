"""Whose keys this process believes: fetched from the registry, checked, cached and renewed.

Read in this order: `store`, which answers verifiers; `beliefs`, the pure values; `shelf`, the cache of one kind of
document, with `shelves`; `statements`, the cache of key statements; `documents`, which fetches and checks them against
the `seen_ledger`; `changes` and `background`, which renew them; `awake` and `confirmation`, for restarts and pauses.
"""
