"""Data sets: where they come from, what belongs to them, their split files and groups."""
