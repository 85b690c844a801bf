from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.video import reading
from pipeline_lib.video.ffmpeg import VideoError, ffmpeg_path
from pipeline_lib.video.reading import count_frames, probe, read_frames
from pipeline_lib.video.writing import VideoWriter, write_gif
from tests.pipeline_lib.video.program import program_pixels

HEIGHT, WIDTH = 48, 64
UNTAMED = "- #(we) [ir]d! &+;~@ é漢 %d 'q\".mp4"


def grey_frames(num_frames: int) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), 20 + 5 * number % 200, np.uint8) for number in range(num_frames)]


def write(path: Path, frames: Iterable[np.ndarray], fps: float = 30) -> Path:
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=fps) as video:
        for frame in frames:
            video.write(frame)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / UNTAMED, grey_frames(40))


def test_what_is_written_is_read(video: Path):
    frames = list(read_frames(video))
    assert count_frames(video) == len(frames) == 40
    for expected, found in zip(grey_frames(40), frames, strict=True):
        assert found.dtype == np.uint8
        assert np.abs(expected.astype(int) - found).max() <= 3


def test_colours_come_back(tmp_path: Path):
    for colour in ((200, 30, 40), (30, 190, 60), (40, 50, 210)):
        frame = np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3))
        (found,) = read_frames(write(tmp_path / "colour.mp4", [frame]))
        assert np.abs(found.astype(int) - colour).max() <= 4


def test_equal_frames_give_equal_bytes(video: Path, tmp_path: Path):
    assert write(tmp_path / "again.mp4", grey_frames(40)).read_bytes() == video.read_bytes()


def test_the_video_plays_in_browsers_while_it_loads(video: Path):
    content = video.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    arguments = [ffmpeg_path(), "-i", str(video)]
    text = subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL, check=False).stderr.decode()
    assert "h264" in text
    assert "yuv420p(tv, bt709" in text


def test_probe_tells_what_the_file_declares(video: Path):
    info = probe(video)
    assert (info.codec, info.fps, info.width, info.height, info.has_audio) == ("h264", 30.0, WIDTH, HEIGHT, False)
    assert info.seconds == pytest.approx(count_frames(video) / 30, abs=0.02)


@pytest.mark.parametrize(
    ("line", "fps"),
    [
        ("Stream #0:0: Video: mpeg4 (DX50 / 0x30355844), yuv420p, 320x240 [SAR 1:1 DAR 4:3], 30 fps, 30 tbr", 30.0),
        ("Stream #0:1[0x2](eng): Video: h264 (High), yuv420p(tv, bt709, progressive), 320x240, 29.97 fps, 30k tbn", 29.97),
        ("Stream #0:0: Video: rawvideo (RGB[24] / 0x18424752), bgr24, 320x240, 2k fps, 2k tbr", 2000.0),
        ("Stream #0:0: Video: vp9, yuv420p, 320x240, 1k tbr, 1k tbn", np.nan),
    ],
)
def test_probe_understands_ffmpegs_ways_to_say_it(line: str, fps: float):
    info = reading.parse_info(f"Input #0\n  {line}\n")
    assert (info.width, info.height) == (320, 240)
    np.testing.assert_equal(info.fps, fps)


def test_a_cover_picture_is_no_video():
    line = "Stream #0:1[0x0]: Video: mjpeg (Baseline), yuvj420p(pc), 64x64, 90k tbr, 90k tbn (attached pic)"
    with pytest.raises(VideoError, match="no video stream"):
        reading.parse_info(f"Input #0\n  {line}\n")


def test_frames_can_be_scaled(video: Path):
    assert {frame.shape for frame in read_frames(video, max_side=32)} == {(24, 32, 3)}
    whole, same = (np.stack(list(read_frames(video, max_side=side))) for side in (None, WIDTH))
    np.testing.assert_array_equal(whole, same)


@pytest.mark.parametrize("size", [(64, 48), (66, 130), (320, 240)])
@pytest.mark.parametrize("max_side", [None, 50, 300])
def test_frames_are_those_of_ffmpegs_program(tmp_path: Path, size: tuple[int, int], max_side: int | None):
    path, random = tmp_path / "blocks.mp4", np.random.default_rng(0)
    with VideoWriter(path, width=size[0], height=size[1], fps=15) as video:
        for _ in range(12):
            blocks = random.integers(0, 256, (size[1] // 6 + 1, size[0] // 6 + 1, 3), np.uint8)
            video.write(blocks.repeat(6, axis=0).repeat(6, axis=1)[: size[1], : size[0]])
    for first in (0, 7):
        found = list(read_frames(path, max_side=max_side, start_seconds=max(0, first - 0.5) / 15))
        assert len(found) == 12 - first
        assert b"".join(found) == program_pixels(path, max_side=max_side, first_frame=first)


def test_a_damaged_video_is_an_error_in_one_line(video: Path, tmp_path: Path):
    content, path = video.read_bytes(), tmp_path / "damaged.mp4"
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(VideoError, match=r"^no video stream that can be decoded$"):
        list(read_frames(path))
    path.write_bytes(content[: start + 900])
    with pytest.raises(VideoError, match=r"^not a video that ffmpeg can read$"):
        list(read_frames(path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty", b"", r"empty \(0 bytes\)"),
        ("text", b"hello\n" * 100, "not a video"),
        ("missing", None, "cannot be opened: No such file"),
    ],
    ids=["empty", "text", "missing"],
)
@pytest.mark.parametrize("read", [probe, count_frames, lambda path: next(read_frames(path))], ids=["probe", "count", "read"])
def test_what_is_not_a_video_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None, reason: str, read):
    path = tmp_path / f"{name}.avi"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=reason) as caught:
        read(path)
    assert "\n" not in caught.value.reason


def test_a_cut_off_mp4_is_named_as_such(video: Path, tmp_path: Path):
    cut_off = tmp_path / "cut.mp4"
    content = video.read_bytes()
    cut_off.write_bytes(content[: content.index(b"moov") - 4] + b"\0\0\1\0mdat" + b"\1" * 2000)
    with pytest.raises(VideoError, match=r"index \(moov atom\) is missing"):
        count_frames(cut_off)


def test_odd_sizes_and_wrong_frames_are_refused(tmp_path: Path):
    path = tmp_path / "odd.mp4"
    with pytest.raises(ValueError, match="even width and height, got 63x48"):
        VideoWriter(path, width=63, height=48, fps=15)
    with pytest.raises(ValueError, match="frames must be uint8"), VideoWriter(path, width=64, height=48, fps=15) as video:
        video.write(np.zeros((48, 64), np.uint8))
    assert not path.exists()


def test_an_error_while_writing_removes_the_file(tmp_path: Path):
    def frames() -> Iterator[np.ndarray]:
        yield from grey_frames(1)
        raise KeyError

    path = tmp_path / "half.mp4"
    with pytest.raises(KeyError):
        write(path, frames())
    assert not path.exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(VideoError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "video.mp4", grey_frames(300))


def test_a_gif_holds_every_frame_for_its_time(tmp_path: Path):
    path = tmp_path / "moving.gif"
    frames = [np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8) for number in range(12)]
    write_gif(frames, path, fps=15)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (12, (WIDTH, HEIGHT), 0)
        durations_ms, shown = [], []
        for number in range(12):
            gif.seek(number)
            durations_ms.append(gif.info["duration"])
            shown.append(np.asarray(gif.convert("RGB")).mean())
    # A fifteenth of a second is no number of hundredths: the sum is right.
    assert set(durations_ms) == {60, 70}
    assert sum(durations_ms) == 800
    np.testing.assert_allclose(shown, 20 * np.arange(12), atol=2)
    with pytest.raises(ValueError, match="at least one frame"):
        write_gif([], path, fps=10)


@pytest.mark.parametrize(
    ("clip", "declared", "decoded"),
    [
        ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", 409, 408),
        (
            "climb_stairs/Increase_stride_length_by_running_stairs__working_step_over_action_speed_development_"
            "climb_stairs_f_cm_np1_le_med_1.avi",
            75,
            74,
        ),
    ],
)
def test_hmdb51_frames_are_counted_by_decoding(shared: Path, clip: str, declared: int, decoded: int):
    path = shared / "data/hmdb51_clips" / clip
    assert int.from_bytes(path.read_bytes()[48:52], "little") == declared  # dwTotalFrames of the AVI header
    assert count_frames(path) == decoded


@pytest.mark.parametrize("fps", [15, 29.97])
def test_reading_may_start_at_any_frame(tmp_path: Path, fps: float):
    # Long enough for several key frames; x264 sets one at least every 250 frames.
    frames = [np.full((HEIGHT, WIDTH, 3), number % 200, np.uint8) for number in range(600)]
    path = write(tmp_path / "long.mp4", frames, fps=fps)
    whole = list(read_frames(path))
    assert len(whole) == 600
    for first in (1, 2, 249, 250, 251, 437, 599):
        rest = list(read_frames(path, start_seconds=(first - 0.5) / fps))
        assert len(rest) == 600 - first
        np.testing.assert_array_equal(rest[:5], whole[first : first + 5])
