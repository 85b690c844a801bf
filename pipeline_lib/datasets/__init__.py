"""Data sets: addresses, expected contents, split files and groups."""
