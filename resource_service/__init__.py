"""An example callee: it keeps profiles and answers only services that it names."""
