"""How a function package becomes an OCI image."""
