"""The demo's collection: people of numbers and colours who act HMDB-51's classes, with the actor's place in every frame."""

from pipeline_lib.fetch.rar import pack_collection
from pipeline_lib.fetch.synthetic.collection import render_collection

__all__ = ["pack_collection", "render_collection"]
