"""Videos in and out, through ffmpeg."""
