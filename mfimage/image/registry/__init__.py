"""The OCI distribution protocol: reading from registries and pushing to them."""
