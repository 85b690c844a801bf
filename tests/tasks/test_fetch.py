"""What a collection is known by."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.errors import UserError
from pipeline_lib.params import FetchParams
from tasks.fetch import recipe
from tasks.stage import Context


def key(context: Context, boxes: Path | None, videos: Path) -> str:
    return recipe(context, FetchParams(kind="folder", videos=str(videos), boxes=str(boxes) if boxes else None)).key


def test_boxes_count_by_their_content_and_not_by_their_place(tmp_path: Path) -> None:
    context, videos = Context(workspace=Workspace(folder=tmp_path / "workspace")), tmp_path / "videos"
    for path, text in (("videos/walk/a.avi", "film"), ("b.csv", "boxes"), ("moved/c.csv", "boxes"), ("d.csv", "other boxes")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    boxed, moved, other = (key(context, tmp_path / name, videos) for name in ("b.csv", "moved/c.csv", "d.csv"))
    assert boxed == moved
    assert len({boxed, other, key(context, None, videos)}) == 3


def test_an_address_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    params = FetchParams(kind="archive", videos="ftp://me:secret@example.org/videos.zip")
    with pytest.raises(UserError, match=r"ftp://\*\*\*@example\.org/videos\.zip: no such file"):
        recipe(Context(workspace=Workspace(folder=tmp_path / "workspace")), params)


def test_a_missing_file_is_named_with_the_hint_of_the_parameters(tmp_path: Path) -> None:
    params = FetchParams(kind="archive", videos="nowhere/videos.rar", hint="render it first")
    with pytest.raises(UserError, match=r"^fetch: nowhere/videos\.rar: no such file or folder; relative .*; render it first$"):
        recipe(Context(workspace=Workspace(folder=tmp_path / "workspace")), params)


def remote(context: Context, address: str) -> str:
    return recipe(context, FetchParams(kind="archive", videos=address)).key


def test_an_address_signed_anew_is_the_same_collection_and_another_file_is_not(tmp_path: Path) -> None:
    context = Context(workspace=Workspace(folder=tmp_path))
    first = remote(context, "https://host/get?file=a&X-Amz-Signature=one&X-Amz-Expires=9")
    assert remote(context, "https://me:password@host/get?file=a&X-Amz-Signature=two&X-Amz-Expires=8") != first
    assert remote(context, "https://host/get?file=a&X-Amz-Signature=two&X-Amz-Expires=8") == first
    assert remote(context, "https://host/get?file=b&X-Amz-Signature=one&X-Amz-Expires=9") != first
    made_from = recipe(context, FetchParams(kind="archive", videos="https://me:password@host/get?file=a&sig=secret"))
    assert not any(secret in str(made_from) for secret in ("password", "secret"))
