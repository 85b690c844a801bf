"""Work that goes on side by side in the threads of one process."""
