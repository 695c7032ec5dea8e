"""Programs to copy, each with the commands that run it."""
