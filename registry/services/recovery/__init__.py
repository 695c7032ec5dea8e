"""Recovery from a loss: verify and restore a database, or declare a new history."""
