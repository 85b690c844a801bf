from __future__ import annotations

import errno
import os
import pickle
import signal
import tempfile
import time
from pathlib import Path

import ffmpeg
import pytest

from pipeline_lib.video.ffmpeg import VideoError, check_status, command, open_video, run, start, stop


def endless_noise(output: Path):
    return ffmpeg.input("testsrc", format="lavfi").output(str(output), format="rawvideo")


def test_a_graph_that_takes_too_long_is_stopped(tmp_path: Path):
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"longer than 0.2 seconds"):
        run(endless_noise(Path("/dev/null")).overwrite_output(), timeout_seconds=0.2)
    assert time.monotonic() - started < 10


def test_ffmpeg_is_out_of_reach_of_ctrl_c_and_shares_the_cores_by_priority():
    """In another session a lower priority would change nothing, as Linux shares the cores among sessions first."""
    with tempfile.TemporaryFile() as log:
        process = start(command(endless_noise(Path("/dev/null")).overwrite_output()), log)
        try:
            assert os.getpgid(process.pid) != os.getpgid(0)
            assert os.getsid(process.pid) == os.getsid(0)
        finally:
            stop(process)


def test_a_full_disk_is_no_fault_of_the_video():
    with pytest.raises(OSError, match="make room") as caught:
        run(endless_noise(Path("/dev/full")).overwrite_output(), timeout_seconds=30)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_ffmpeg_is_no_fault_of_the_video(number: signal.Signals):
    with pytest.raises(RuntimeError, match="stopped from outside"):
        check_status(-number, "")


def test_a_kill_for_memory_is_told_of_the_video():
    with pytest.raises(VideoError, match="killed, as when memory runs out"):
        check_status(-signal.SIGKILL, "")


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


@pytest.mark.parametrize(
    "beginning", [b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n", b"ffconcat version 1.0\nfile x\n", b"\xef\xbb\xbf <MPD/>"]
)
def test_playlists_are_refused(tmp_path: Path, beginning: bytes):
    """They would make ffmpeg open other files and addresses."""
    playlist = tmp_path / "list.mp4"
    playlist.write_bytes(beginning)
    with pytest.raises(VideoError, match="a playlist, not a video"):
        open_video(playlist)


def test_what_is_read_can_open_no_addresses(tmp_path: Path):
    """Should a list pass for a video, there is still this."""
    arguments = command(open_video(Path(__file__)).output("pipe:", format="null"))
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_no_video(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.avi")
    with pytest.raises(VideoError, match="not a file"):
        open_video(tmp_path / "pipe.avi")


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("reason", "stderr")))
    assert (error.reason, error.stderr) == ("reason", "stderr")
