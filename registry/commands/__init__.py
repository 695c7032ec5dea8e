"""The operators' commands, one group a module; `registry.cli` puts them together."""
