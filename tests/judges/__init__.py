"""Third-party judges: code that nobody here wrote reads our tokens and key sets, and makes tokens that we read."""
