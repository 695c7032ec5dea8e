"""Third-party judges: code of others reads our tokens and key sets, and makes tokens that we read."""
