"""The fetch stage: download and unpack a video collection, or use a local folder."""
