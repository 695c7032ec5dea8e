"""The operators' commands, one group a module; `registry.__main__` puts them together."""
