"""Decode and encode videos with ffmpeg."""
