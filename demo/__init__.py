"""Peerseal on real processes: ``make demo`` shows it, ``make up`` leaves it running. Needs the ``demo`` extra."""
