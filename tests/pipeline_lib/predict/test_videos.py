from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline_lib.predict import videos
from pipeline_lib.predict.videos import RequestedVideo, find_videos
from pipeline_lib.video.ffmpeg import VideoError


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(video: Path) -> Iterator[str]:
    """Serve the video's folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(video.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_folder_means_all_videos_inside(tmp_path):
    for name in ("b.MP4", "a/c.webm", "a/d/e.avi", ".hidden.mp4", "a/.git/f.mp4", "__MACOSX/g.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [Path(video.name).relative_to(tmp_path).as_posix() for video in find_videos([str(tmp_path)])]
    assert names == ["a/c.webm", "a/d/e.avi", "b.MP4"]


def test_a_file_is_taken_whatever_it_is_called_and_a_file_address_too(tmp_path):
    path = tmp_path / "holiday #1 (é)"
    path.touch()
    assert find_videos([str(path)]) == find_videos([path.as_uri()]) == [RequestedVideo(str(path))]
    assert RequestedVideo(str(path)).stem == "holiday_1_é"
    assert RequestedVideo(str(path)).fetch(tmp_path) == path


def test_an_address_is_downloaded(site, video, tmp_path):
    (asked,) = find_videos([f"{site}/%231%20(%C3%BC).mp4?key=secret"])
    fetched = asked.fetch(tmp_path)
    assert fetched.parent == tmp_path
    assert fetched.read_bytes() == video.read_bytes()
    assert asked.stem == "1_ü"


def test_an_address_that_gives_no_video_is_one_clear_line(site, tmp_path):
    with pytest.raises(ValueError, match="HTTP 404"):
        RequestedVideo(f"{site}/none.mp4").fetch(tmp_path)
    with pytest.raises(ValueError, match="web page"):
        RequestedVideo(f"{site}/").fetch(tmp_path)


def test_a_download_beyond_the_limit_is_refused_as_soon_as_its_size_is_known(site, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "MAX_DOWNLOAD_BYTES", 2_000)
    (asked,) = find_videos([f"{site}/%231%20(%C3%BC).mp4"])
    with pytest.raises(VideoError, match=r"^larger than the limit of 0 MB for downloads; download it and give the file$"):
        asked.fetch(tmp_path)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("none.mp4", "no such file or folder"),
        ("ftp://host/a.mp4", "only http, https and file"),
        (".", "no video in this folder"),
    ],
)
def test_what_is_not_there_is_refused_at_once(tmp_path, monkeypatch, argument, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{re.escape(argument)}: {reason}"):
        find_videos([argument])
