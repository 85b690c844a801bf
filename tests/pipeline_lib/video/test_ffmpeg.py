from __future__ import annotations

import errno
import pickle
import signal
import time
from pathlib import Path

import ffmpeg
import pytest

from pipeline_lib.video.ffmpeg import VideoError, check_status, command, open_video, run


def endless_noise(output: Path):
    return ffmpeg.input("testsrc", format="lavfi").output(str(output), format="rawvideo")


def test_a_graph_that_takes_too_long_is_stopped(tmp_path: Path):
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"longer than 0.2 seconds"):
        run(endless_noise(Path("/dev/null")).overwrite_output(), timeout_seconds=0.2)
    assert time.monotonic() - started < 10


def test_a_full_disk_is_no_fault_of_the_video():
    with pytest.raises(OSError, match="make room") as caught:
        run(endless_noise(Path("/dev/full")).overwrite_output(), timeout_seconds=30)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_ffmpeg_is_no_fault_of_the_video(number: signal.Signals):
    with pytest.raises(RuntimeError, match="stopped from outside"):
        check_status(-number, "")


def test_a_crash_of_ffmpeg_is_named():
    with pytest.raises(VideoError, match=r"crashed \(SIGSEGV\)"):
        check_status(-signal.SIGSEGV, "")


def test_an_unknown_failure_is_told_in_ffmpegs_last_words():
    with pytest.raises(VideoError, match=r"^ffmpeg failed: the cause$") as caught:
        check_status(1, "at first\nthe cause")
    assert caught.value.stderr == "at first\nthe cause"


def test_messages_hold_no_memory_addresses(tmp_path: Path):
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"RIFFxxxx" * 100)
    with pytest.raises(VideoError) as caught:
        run(open_video(broken).output("pipe:", format="null"), timeout_seconds=30)
    assert "[in#0" in caught.value.stderr
    assert "0x" not in caught.value.stderr


def test_playlists_cannot_open_addresses(tmp_path: Path):
    assert "file" in command(open_video(Path(__file__)).output("pipe:", format="null"))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError) as caught:
        run(open_video(playlist).output("pipe:", format="null"), timeout_seconds=30)
    assert "not on whitelist" in caught.value.stderr


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("reason", "stderr")))
    assert (error.reason, error.stderr) == ("reason", "stderr")
