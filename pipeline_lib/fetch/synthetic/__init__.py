"""The demo's collection: drawn people act HMDB-51's classes, and where the actor is in every frame is known."""

from pipeline_lib.fetch.rar import pack_collection
from pipeline_lib.fetch.synthetic.collection import render_collection

__all__ = ["pack_collection", "render_collection"]
