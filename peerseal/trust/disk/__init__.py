"""What the trust stores of one host share on disk."""
