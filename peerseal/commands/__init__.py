"""The commands of a service's owner, one a module; `peerseal.cli` puts them together."""
