"""Whether the registry is honest: its ledger read from outside, monitored and mirrored."""
