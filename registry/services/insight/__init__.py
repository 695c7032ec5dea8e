"""What the console shows of the whole registry: read only, bounded, and kept for some seconds where it is costly."""
