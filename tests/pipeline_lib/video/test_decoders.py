"""Decoding in other processes: the frames of ffmpeg's own program, one clear error, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.video import decode_worker, decoders
from pipeline_lib.video.decoders import DecoderDiedError, DecoderProcess, close_idle_decoders, empty_array, read_arrays
from pipeline_lib.video.ffmpeg import VideoError, ffmpeg_path
from pipeline_lib.video.writing import VideoWriter
from tests.pipeline_lib.video.program import program_pixels

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _no_process_before_or_after() -> Iterator[None]:
    close_idle_decoders()
    yield
    close_idle_decoders()


def make_video(path: Path, *, num_frames: int, width: int = 64, height: int = 48) -> Path:
    random = np.random.default_rng(num_frames)
    with VideoWriter(path, width=width, height=height, fps=15) as writer:
        for _ in range(num_frames):
            writer.write(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


def test_a_decoder_is_out_of_reach_of_ctrl_c_and_shares_the_cores_by_priority() -> None:
    process = DecoderProcess()
    try:
        assert os.getpgid(process._process.pid) != os.getpgid(0)
        assert os.getsid(process._process.pid) == os.getsid(0)
    finally:
        process.close()


@pytest.mark.parametrize("width", [64, 66, 98])
def test_frames_are_those_of_ffmpegs_program(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd widths have lines that are filled up in memory."""
    path = make_video(tmp_path / "a b'#.mp4", num_frames=40, width=width)
    frames = np.concatenate(list(read_arrays(path)))
    assert frames.shape == (40, 48, width, 3)
    assert frames.tobytes() == program_pixels(path)


def test_arrays_hold_so_many_bytes_and_are_made_by_the_caller(tmp_path: Path) -> None:
    path = make_video(tmp_path / "large.mp4", num_frames=9, width=1280, height=720)
    shapes: list[tuple[int, ...]] = []

    def empty(shape: tuple[int, ...]) -> np.ndarray:
        shapes.append(shape)
        return empty_array(shape)

    assert sum(len(frames_NHWC) for frames_NHWC in read_arrays(path, empty=empty)) == 9
    most = decode_worker.CHUNK_BYTES // (1280 * 720 * 3)
    assert [shape[0] for shape in shapes] == [most] * (9 // most) + ([9 % most] if 9 % most else [])


def test_small_images_are_not_sent_long_after_large_ones():
    """A whole video of small images would fit into one message, for which all of its large frames would be kept."""
    chunks = decode_worker._chunks(np.zeros((2, 2, 3), np.uint8) for _ in range(150))
    assert [len(images) for images in chunks] == [64, 64, 22]


@pytest.mark.parametrize(("max_side", "size"), [(None, (96, 128)), (128, (96, 128)), (100, (96, 100)), (64, (64, 64))], ids=str)
def test_large_frames_are_scaled_down_while_they_are_decoded(tmp_path, max_side, size) -> None:
    """And those that are not large are left as they are, to the bit."""
    path = tmp_path / "ramp.mp4"
    ramp_HW3 = np.broadcast_to(np.linspace(20, 235, 128).astype(np.uint8)[:, None], (96, 128, 3))
    with VideoWriter(path, width=128, height=96, fps=15) as writer:
        for _ in range(3):
            writer.write(ramp_HW3)
    frames = np.concatenate(list(read_arrays(path, max_side=max_side)))
    assert frames.shape == (3, *size, 3)
    if size == (96, 128):
        assert np.array_equal(frames, np.concatenate(list(read_arrays(path))))
    expected_W = np.linspace(20, 235, size[1])
    assert abs(frames.mean(axis=(0, 1, 3)) - expected_W).max() < 6


def test_real_videos_of_any_kind(shared: Path) -> None:
    """Sizes that change, damage, rotation: whatever the file, frames or one line that says why not."""
    arrays: list[np.ndarray] = []
    reasons: list[str] = []
    for path in sorted((shared / "data" / "decoder_samples").iterdir()):
        try:
            arrays += read_arrays(path)
        except VideoError as error:
            reasons.append(error.reason)
    assert arrays
    assert all(frames_NHWC.dtype == np.uint8 and frames_NHWC.shape[3] == 3 for frames_NHWC in arrays)
    assert all(reason and "\n" not in reason for reason in reasons)


def test_one_process_serves_one_video_after_the_other(tmp_path: Path) -> None:
    paths = [make_video(tmp_path / f"{count}.mp4", num_frames=count) for count in (3, 5)]
    lengths, processes = [], set()
    for path in paths:
        lengths.append(sum(map(len, read_arrays(path))))
        processes.add(decoders._idle[-1]._process.pid)
    assert lengths == [3, 5]
    assert len(processes) == 1


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_what_is_no_video_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError) as raised:
        list(read_arrays(path))
    assert raised.value.reason
    assert "\n" not in raised.value.reason


def test_a_file_without_pictures_is_told(tmp_path: Path) -> None:
    sound = ["-f", "lavfi", "-i", "sine=duration=1", str(tmp_path / "sound.mp4")]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *sound], check=True)
    with pytest.raises(VideoError, match="no video stream"):
        list(read_arrays(tmp_path / "sound.mp4"))


def test_leaving_early_ends_the_process(tmp_path: Path) -> None:
    arrays = read_arrays(make_video(tmp_path / "long.mp4", num_frames=40, width=640, height=480))
    next(arrays)
    arrays.close()  # type: ignore[attr-defined]
    assert decoders._idle == []


@pytest.mark.parametrize("is_dead_before", [False, True])
def test_a_decoder_that_is_killed_is_told_and_replaced(tmp_path: Path, is_dead_before: bool) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=3)
    process = DecoderProcess()
    os.kill(process._process.pid, signal.SIGKILL)
    if is_dead_before:
        process._process.wait()
    decoders._idle.append(process)
    with pytest.raises(DecoderDiedError, match=r"the decoder was killed, probably because the machine ran out of memory"):
        list(read_arrays(path))
    assert sum(map(len, read_arrays(path))) == 3


def test_a_decoder_that_fails_is_told_with_its_last_words(tmp_path, monkeypatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no codec here')")
    monkeypatch.setattr(decode_worker, "__file__", str(broken))
    with pytest.raises(DecoderDiedError, match=r"^the decoder exited with status 1: no codec here$"):
        list(read_arrays(make_video(tmp_path / "a.mp4", num_frames=3)))


def test_no_more_idle_decoders_are_kept_than_there_are_cores(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(decoders, "num_cores", lambda: 1)
    path = make_video(tmp_path / "a.mp4", num_frames=3)
    open_at_once = [read_arrays(path) for _ in range(2)]
    for arrays in (*open_at_once, *open_at_once):
        next(arrays, None)
    assert len(decoders._idle) == 1


def test_silence_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "TIMEOUT_SECONDS", 1)
    process = DecoderProcess()
    os.kill(process._process.pid, signal.SIGSTOP)
    decoders._idle.append(process)
    with pytest.raises(VideoError, match="did not respond for 1 seconds"):
        list(read_arrays(make_video(tmp_path / "a.mp4", num_frames=3)))
