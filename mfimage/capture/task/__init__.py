"""A Metaflow task: its pathspec, its artifacts as stored bytes, and where its packages are kept."""
