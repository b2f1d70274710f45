"""What bind records: code, artifacts, environment."""
