"""Whether the registry is honest: `ledger_reader` reads its ledger, `monitor` reports, `mirror` stores a copy."""
