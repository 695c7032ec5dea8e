"""An example callee: it serves profiles, cases and invoices to the services that it names."""
