"""The demo's collection: drawn people act HMDB-51's classes, and where the actor is in every frame is known.

`python -m demo FOLDER` renders it as a user would have HMDB-51. Only `pipeline_lib` is imported here; the pipeline knows
nothing of this package.
"""
