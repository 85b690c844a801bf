"""Stage 1: the collection, downloaded, unpacked, or rendered."""
