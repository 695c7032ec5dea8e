"""What any process needs, whatever it does with keys: files, settings."""
