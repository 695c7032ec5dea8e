"""Whose keys this process believes: fetched from the registry, checked, cached and renewed."""
