"""The registry over HTTP: parse, call the use case, render."""
