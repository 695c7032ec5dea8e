"""What any process needs, with or without keys: files and locks, forks, limits, settings, metrics, output."""
