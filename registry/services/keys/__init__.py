"""Services' keys: how they are admitted, listed and ended."""
