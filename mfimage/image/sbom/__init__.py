"""What an image contains, as a CycloneDX document."""
