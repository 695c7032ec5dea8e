"""An example callee: it keeps profiles, cases and invoices, and answers only services that it names."""
