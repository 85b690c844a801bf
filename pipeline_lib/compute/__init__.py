"""Devices, precision, determinism, cores, and the engine that runs work."""
