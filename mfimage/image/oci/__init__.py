"""Building images without an engine: reproducible layers, and the formats that hold images."""
