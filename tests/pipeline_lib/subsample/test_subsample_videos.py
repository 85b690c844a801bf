from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.params import SubsampleParams
from pipeline_lib.subsample import subsample_video
from pipeline_lib.video.ffmpeg import VideoError, ffmpeg_path
from pipeline_lib.video.reading import count_frames, probe, read_frames
from pipeline_lib.video.writing import VideoWriter

PARAMS = SubsampleParams()
BITS = 8
HEIGHT, WIDTH = 16, 8 * BITS


def numbered_video(path: Path, fps: float, num_frames: int) -> Path:
    """Write a video whose frames carry their number, in eight black or white columns."""
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=fps, crf=10) as video:
        for number in range(num_frames):
            columns = [255 * (number >> bit & 1) for bit in range(BITS)]
            row = np.repeat(np.array(columns, np.uint8), WIDTH // BITS)
            video.write(np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)))
    return path


def read_numbers(path: Path) -> list[int]:
    centres = np.arange(BITS) * WIDTH // BITS + WIDTH // BITS // 2
    return [int(((frame[HEIGHT // 2, centres, 0] > 127) << np.arange(BITS)).sum()) for frame in read_frames(path)]


def ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *arguments], check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("num_frames", [1, 2, 7, 60, 61, 74])
def test_from_30_fps_every_second_frame_stays(tmp_path: Path, num_frames: int):
    source = numbered_video(tmp_path / "30.mp4", 30, num_frames)
    result = subsample_video(source, tmp_path / "15.mp4", PARAMS)
    assert read_numbers(tmp_path / "15.mp4") == list(range(0, num_frames, 2))
    assert result.num_frames == math.ceil(num_frames / 2)
    assert (result.width, result.height, result.source_fps, result.stderr) == (WIDTH, HEIGHT, 30.0, None)


@pytest.mark.parametrize("fps", ["60", "50", "30000/1001", "25", "24000/1001", "15", "12", "15/2"])
def test_any_rate_becomes_exactly_15_fps(tmp_path: Path, fps: str):
    source = numbered_video(tmp_path / "source.mp4", float(Fraction(fps)), 61)
    subsample_video(source, tmp_path / "15.mp4", PARAMS)
    # Each frame is the last one that has begun at its moment, a tenth of a period of grace included.
    num_frames = math.ceil(61 * 15 / Fraction(fps) - Fraction(1, 10))
    moments = [(number + Fraction(1, 10)) / 15 for number in range(num_frames)]
    assert read_numbers(tmp_path / "15.mp4") == [min(math.floor(moment * Fraction(fps)), 60) for moment in moments]
    assert probe(tmp_path / "15.mp4").fps == 15.0


def test_another_rate_can_be_asked_for(tmp_path: Path):
    source = numbered_video(tmp_path / "30.mp4", 30, 30)
    subsample_video(source, tmp_path / "10.mp4", SubsampleParams(fps=10.0))
    assert read_numbers(tmp_path / "10.mp4") == list(range(0, 30, 3))


def test_jitter_of_a_millisecond_container_changes_nothing(tmp_path: Path):
    numbered_video(tmp_path / "30.mp4", 30, 90)
    ffmpeg("-i", str(tmp_path / "30.mp4"), "-c", "copy", str(tmp_path / "30.mkv"))
    subsample_video(tmp_path / "30.mkv", tmp_path / "15.mp4", PARAMS)
    assert read_numbers(tmp_path / "15.mp4") == list(range(0, 90, 2))


def test_a_late_start_is_no_frozen_picture(tmp_path: Path):
    numbered_video(tmp_path / "30.mp4", 30, 20)
    ffmpeg(
        "-itsoffset",
        "5",
        "-i",
        str(tmp_path / "30.mp4"),
        "-f",
        "lavfi",
        "-i",
        "sine=d=6",
        "-c:v",
        "copy",
        str(tmp_path / "late.mkv"),
    )
    subsample_video(tmp_path / "late.mkv", tmp_path / "15.mp4", PARAMS)
    assert read_numbers(tmp_path / "15.mp4") == list(range(0, 20, 2))


def test_crf_0_loses_nothing_at_the_same_rate(tmp_path: Path):
    source = numbered_video(tmp_path / "15.mp4", 15, 20)
    subsample_video(source, tmp_path / "same.mp4", SubsampleParams(crf=0))
    np.testing.assert_array_equal(list(read_frames(source)), list(read_frames(tmp_path / "same.mp4")))


def test_audio_is_dropped_and_odd_sizes_lose_a_line(tmp_path: Path):
    source = tmp_path / "odd.mkv"
    ramp = "color=s=65x33:d=1,format=yuv420p,geq=lum=20+3*X:cb=128:cr=128"
    ffmpeg("-f", "lavfi", "-i", ramp, "-f", "lavfi", "-i", "sine=d=1", "-c:v", "ffv1", str(source))
    assert probe(source).has_audio
    result = subsample_video(source, tmp_path / "even.mp4", PARAMS)
    assert (result.num_frames, result.width, result.height) == (15, 64, 32)
    assert not probe(tmp_path / "even.mp4").has_audio
    expected, found = next(read_frames(source)), next(read_frames(tmp_path / "even.mp4"))
    assert np.abs(expected[:32, :64].astype(int) - found).mean() < 1  # a shift by one pixel would be 3.5


def test_pixels_become_square(tmp_path: Path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:d=0.2,setsar=3/2", str(tmp_path / "wide.mp4"))
    result = subsample_video(tmp_path / "wide.mp4", tmp_path / "15.mp4", PARAMS)
    assert (result.width, result.height) == (96, 48)


def test_rotation_is_respected(tmp_path: Path):
    ffmpeg("-f", "lavfi", "-i", "color=black:s=64x32:d=0.2,drawbox=w=32:c=white:t=fill", str(tmp_path / "flat.mp4"))
    ffmpeg("-display_rotation", "90", "-i", str(tmp_path / "flat.mp4"), "-c", "copy", str(tmp_path / "turned.mp4"))
    result = subsample_video(tmp_path / "turned.mp4", tmp_path / "15.mp4", PARAMS)
    assert (result.width, result.height) == (32, 64)
    frame = next(read_frames(tmp_path / "15.mp4"))
    assert frame[:28].mean() < 20  # turned left: what was white on the left is now below
    assert frame[36:].mean() > 235


def test_equal_input_gives_equal_bytes_even_if_damaged(shared: Path, tmp_path: Path):
    clip = shared / "data/hmdb51_clips/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi"
    content = bytearray(clip.read_bytes()[:120_000])
    content[30_000:60_000:97] = bytes(len(content[30_000:60_000:97]))
    damaged = tmp_path / "damaged.avi"
    damaged.write_bytes(content)
    results = [subsample_video(damaged, tmp_path / f"{number}.mp4", PARAMS) for number in range(2)]
    assert (tmp_path / "0.mp4").read_bytes() == (tmp_path / "1.mp4").read_bytes()
    assert 0 < results[0].num_frames < 204
    assert results[0].stderr


def empty(path: Path) -> None:
    path.touch()


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def audio_only(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.5", str(path))


def no_frames(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:d=1", "-c:v", "mpeg4", str(path))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])


def all_frames_damaged(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:d=1", "-f", "mp4", str(path))
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (empty, "empty"),
        (garbage, "not a video"),
        (audio_only, "no video stream"),
        (no_frames, "no frame could be decoded"),
        (all_frames_damaged, "damaged: most of it"),
        (lambda path: None, "No such file"),
    ],
    ids=["empty", "garbage", "audio only", "no frames", "all damaged", "missing"],
)
def test_what_cannot_be_decoded_is_refused_and_leaves_nothing(tmp_path: Path, make: Callable[[Path], None], reason: str):
    make(tmp_path / "bad.avi")
    with pytest.raises(VideoError, match=reason):
        subsample_video(tmp_path / "bad.avi", tmp_path / "15.mp4", PARAMS)
    assert not (tmp_path / "15.mp4").exists()


@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
def test_pictures_that_are_too_large_are_refused_before_they_are_decoded(tmp_path: Path, codec: str):
    source = tmp_path / "large.mkv"
    encoding = ("-c:v", codec, "-preset", "ultrafast", "-threads", "1")
    ffmpeg("-f", "lavfi", "-i", "color=s=8320x4400:r=25", "-frames:v", "1", *encoding, str(source))
    with pytest.raises(VideoError, match="larger than 35 million pixels"):
        subsample_video(source, tmp_path / "15.mp4", PARAMS)
    assert not (tmp_path / "15.mp4").exists()
    with pytest.raises(VideoError, match="larger than 35 million pixels"):
        probe(source)


@pytest.mark.parametrize("shape", ["30000/1", "1/30000"])
def test_pixels_of_an_absurd_shape_are_taken_for_square_ones(tmp_path: Path, shape: str):
    ffmpeg("-f", "lavfi", "-i", f"testsrc=s=64x48:d=0.2,setsar={shape}", str(tmp_path / "absurd.mp4"))
    result = subsample_video(tmp_path / "absurd.mp4", tmp_path / "15.mp4", PARAMS)
    assert (result.width, result.height) == (64, 48)


def test_metadata_that_looks_like_ffmpegs_log_changes_nothing(tmp_path: Path):
    forged = "x\nframe= 7\nOutput #0, mp4\n  Stream #0:0: Video: h264, 2x2, 3 fps"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:d=1:r=25", "-metadata", f"title={forged}", str(tmp_path / "forged.mp4"))
    result = subsample_video(tmp_path / "forged.mp4", tmp_path / "15.mp4", PARAMS)
    assert (result.num_frames, result.width, result.height) == (15, 64, 48)


@pytest.mark.slow
def test_memory_stays_small_with_4k(tmp_path: Path):
    encoding = ("-c:v", "libx264", "-preset", "ultrafast", "-threads", "1")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=3840x2160:r=30:d=0.5", *encoding, str(tmp_path / "4k.mp4"))
    program = (
        "import sys, resource, pathlib; from pipeline_lib.subsample import *; from pipeline_lib.params import SubsampleParams;"
        "subsample_video(*map(pathlib.Path, sys.argv[1:]), SubsampleParams());"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "4k.mp4"), str(tmp_path / "15.mp4")]
    peak_mb = int(subprocess.run(arguments, check=True, capture_output=True).stdout)
    assert peak_mb < 600


def test_a_jump_of_a_day_in_time_cannot_run_for_ever(tmp_path: Path):
    jump = "testsrc=s=64x48:r=30:d=1,setpts=PTS+if(gte(N\\,15)\\,86400/TB\\,0)"
    ffmpeg("-f", "lavfi", "-i", jump, "-fps_mode", "passthrough", str(tmp_path / "jump.mkv"))
    assert count_frames(tmp_path / "jump.mkv") == 30
    with pytest.raises(VideoError, match="longer than 1 seconds"):
        subsample_video(tmp_path / "jump.mkv", tmp_path / "15.mp4", SubsampleParams(timeout_seconds=1.0))
    assert not (tmp_path / "15.mp4").exists()


DECODER_SAMPLES = {
    "mmaction2__S001C001P001R001A001_rgb.avi": (52, 1920, 1080),
    "mmaction2__demo.mp4": (150, 426, 256),
    "mmaction2__demo_skeleton.mp4": (39, 1920, 1080),
    "mmaction2__demo_spatiotemporal_det.mp4": (143, 340, 256),
    "mmaction2__part_0.mp4": (17, 454, 256),
    "mmaction2__test.avi": (99, 320, 240),
    "mmaction2__test.mp4": (150, 454, 256),
    "mmaction2__test_video_structuralize.mp4": (151, 426, 240),
    "paddlevideo__example.avi": (79, 320, 240),
    "torchcodec__discard_first_keyframe.mp4": (15, 64, 64),
    "torchcodec__nasa_13013.mp4": (195, 320, 180),
    "torchcodec__nasa_13013_rotated.mp4": (9, 270, 480),
    "torchcodec__sine_stereo_mp2.mpg": (60, 128, 128),
    "torchcodec__testsrc2_mpeg4.avi": (15, 1280, 720),
    "torchcodec__testsrc2_vp9.webm": (15, 1280, 720),
    "ucf101__v_BasketballDunk_g17_c03.avi": (45, 320, 240),
    "video_features__v_GGSY1Qvo990.mp4": (272, 320, 240),
    "video_features__v_ZNVhz7ctTq0.mp4": (210, 480, 360),
}
"""Frames at 15 fps, width and height after subsampling: each within a frame of its duration times 15."""

QUICK_SAMPLES = [name for name, (num_frames, width, _) in DECODER_SAMPLES.items() if num_frames * width < 20_000]


def check_sample(shared: Path, name: str, destination: Path) -> None:
    result = subsample_video(shared / "data/decoder_samples" / name, destination, PARAMS)
    assert (result.num_frames, result.width, result.height) == DECODER_SAMPLES[name]
    assert count_frames(destination) == result.num_frames


@pytest.mark.parametrize("name", QUICK_SAMPLES)
def test_real_containers_and_codecs(shared: Path, tmp_path: Path, name: str):
    check_sample(shared, name, tmp_path / "15.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODER_SAMPLES)
def test_all_real_containers_and_codecs(shared: Path, tmp_path: Path, name: str):
    check_sample(shared, name, tmp_path / "15.mp4")


def test_every_real_sample_is_expected(shared: Path):
    assert {path.name for path in (shared / "data/decoder_samples").iterdir()} == DECODER_SAMPLES.keys()


def test_real_hmdb51_clips_give_every_second_decoded_frame(shared: Path, tmp_path: Path):
    (clip,) = (shared / "data/hmdb51_clips/climb_stairs").iterdir()
    assert subsample_video(clip, tmp_path / "15.mp4", PARAMS).num_frames == 37
    source = np.array(list(read_frames(clip)), np.int16)
    assert len(source) == 74
    found = np.array(list(read_frames(tmp_path / "15.mp4")), np.int16)
    error = np.abs(found - source[::2]).mean(axis=(1, 2, 3))
    error_of_neighbours = np.abs(found - source[1::2]).mean(axis=(1, 2, 3))
    assert error.max() < 2.5  # visually lossless
    assert (error <= error_of_neighbours).all()  # the clip begins with the same picture twice


def test_the_longer_hmdb51_clip_too(shared: Path, tmp_path: Path):
    (clip,) = (shared / "data/hmdb51_clips/brush_hair").iterdir()
    assert subsample_video(clip, tmp_path / "15.mp4", PARAMS).num_frames == 204
