"""The demo's collection: drawn people act, and where the actor is in every frame is known.

Some classes can be told apart by a single frame, others in pairs by motion alone. The actors are small, and what is large in
the picture tells nothing about the class.

`python -m demo FOLDER` renders it as a user would have HMDB-51. Only `pipeline_lib` is imported here; the pipeline knows
nothing of this package.
"""
