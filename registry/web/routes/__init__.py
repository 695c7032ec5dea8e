"""The routes, one group a module: parse, call the use case, render."""
