"""Against a plain reference: all frames in memory, one clip after the other, no code of the predictor's."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_lib.backbones.build import build_backbone
from pipeline_lib.params import SubsampleParams
from pipeline_lib.predict import predictor as module
from pipeline_lib.predict.bundle import ModelBundle
from pipeline_lib.predict.predictor import Predictor
from pipeline_lib.streams.encoding import normalise, resize
from pipeline_lib.subsample import SubsampledVideo, subsample_video
from pipeline_lib.training.checkpoints import load_checkpoint
from pipeline_lib.video import decoders
from pipeline_lib.video.decoders import Wanted, read_arrays, read_images
from pipeline_lib.video.reading import probe
from tests.models import CLASSES, FRAMES, GRID, IMAGE_SIZE, RGB, make_bundle, write_video


def reference_features(video: Path, folder: Path) -> torch.Tensor:
    """Return features_NKKD of all frames, as a feature file would hold them."""
    subsample_video(video, folder / "reference.mp4", SubsampleParams(fps=15, crf=16))
    frames = np.concatenate(list(read_arrays(folder / "reference.mp4")))
    backbone = build_backbone("vgg_small", "random", grid=GRID, seed=0)
    with torch.inference_mode():
        pixels = normalise(resize([torch.from_numpy(frames)], IMAGE_SIZE), backbone)
        return backbone(pixels).half().float()


def reference(bundle: ModelBundle, features_NKKD: torch.Tensor, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probability and attention of each frame over all windows, `stride` frames apart, that hold it."""
    network, _ = load_checkpoint(bundle.checkpoint)
    num_frames = len(features_NKKD)
    seen: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(num_frames)]
    first = 0
    while True:
        indices = torch.arange(first, first + FRAMES).clamp(max=num_frames - 1)
        valid = min(FRAMES, num_frames - first)
        with torch.inference_mode():
            logits, attention, _ = network(features_NKKD[indices][None], torch.tensor([valid]))
        for frame in range(valid):
            seen[first + frame].append((logits[0, frame].softmax(0).numpy(), attention[0, frame].numpy()))
        if first + FRAMES >= num_frames:
            break
        first += stride
    means = [[np.mean([entry[kind] for entry in entries], axis=0) for entries in seen] for kind in (0, 1)]
    return np.array(means[0]), np.array(means[1])


@pytest.mark.parametrize(("overlap", "stride"), [(0.0, 6), (0.5, 3), (0.8, 1)])
def test_frames_features_clips_and_votes_are_the_pipelines(predictor, parts, video, tmp_path, overlap, stride):
    prediction = predictor.predict(video, overlap=overlap)
    features_NKKD = reference_features(video, tmp_path)
    assert prediction.video.num_frames == len(features_NKKD) == 16
    for name, model in prediction.models.items():
        probability_TC, attention_TKK = reference(parts[name], features_NKKD, stride)
        np.testing.assert_allclose(model.probability_TC, probability_TC, atol=1e-4)
        votes = np.bincount(probability_TC.argmax(axis=1), minlength=len(CLASSES))
        assert votes[CLASSES.index(model.label)] == votes.max()
        mean_C = probability_TC.mean(axis=0)
        assert model.label_by_mean == CLASSES[int(mean_C.argmax())]
        assert model.confidence == pytest.approx(mean_C[CLASSES.index(model.label)], abs=1e-4)
        assert [label for label, _ in model.top] == [CLASSES[index] for index in np.argsort(-mean_C)]
        assert model.frame_labels == [CLASSES[index] for index in probability_TC.argmax(axis=1)]
        assert (model.attention_TKK is None) == (name == "mean_pool")
        if model.attention_TKK is not None:
            np.testing.assert_allclose(model.attention_TKK, attention_TKK, atol=1e-4)


def test_overlap_changes_what_is_said(predictor, video):
    plain, overlapping = (predictor.predict(video, overlap=overlap).models["alstm"] for overlap in (0.0, 0.5))
    assert np.abs(plain.probability_TC - overlapping.probability_TC).max() > 1e-3
    np.testing.assert_allclose(overlapping.probability_TC.sum(axis=1), 1, atol=1e-5)


def test_a_video_shorter_than_a_clip_and_progress(predictor, tmp_path):
    steps = []
    prediction = predictor.predict(
        write_video(tmp_path / "short.mp4", 3), on_progress=lambda done, total: steps.append((done, total))
    )
    assert prediction.models["alstm"].probability_TC.shape == (2, 3)
    assert steps == [(2, 2)]


def test_several_threads_at_once_get_what_each_would_get_alone(predictor, tmp_path):
    videos = [write_video(tmp_path / f"{length}.mp4", length) for length in (20, 33, 47)]
    alone = [predictor.predict(video) for video in videos]
    together: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda index=index: together.update({index: predictor.predict(videos[index])}))
        for index in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        found = together[index].models["conv_alstm"].probability_TC
        np.testing.assert_allclose(found, expected.models["conv_alstm"].probability_TC, atol=1e-6)


def test_memory_holds_a_few_windows_however_long_the_video(parts, monkeypatch):
    """The decoded arrays and the windows that are alive at once, in a video of thousands of frames."""
    made: list[weakref.ref[np.ndarray]] = []
    most = 0

    def endless(video: Path, wanted: list[Wanted], max_side: int) -> Iterator[tuple[Wanted, np.ndarray]]:
        nonlocal most
        for _ in range(150):
            frames = np.zeros((16, 8, 8, 3), np.uint8)
            made.append(weakref.ref(frames))
            most = max(most, 16 * sum(array() is not None for array in made))
            yield decoders.RGB, frames

    info = SubsampledVideo(2_400, 8, 8, 30.0, None)
    monkeypatch.setattr(module, "read_images", endless)
    long = Predictor([parts["mean_pool"]], device="cpu")
    monkeypatch.setattr(long, "_subsample", lambda *_: info)
    prediction = long.predict(Path("long.mp4"))
    assert prediction.models["mean_pool"].probability_TC.shape == (2_400, 3)
    assert 16 <= most <= 500


def test_the_subsampled_video_is_kept_where_it_is_wanted_and_nothing_else(predictor, video, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    predictor.predict(video, subsampled=tmp_path / "kept.mp4")
    predictor.predict(video)
    assert sum(len(frames) for frames in read_arrays(tmp_path / "kept.mp4")) == 16
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_saved_folder_predicts_the_same(predictor, parts, video, tmp_path):
    parts["alstm"].save(tmp_path)
    loaded = Predictor.load(tmp_path, device="cpu")
    assert loaded.models == ("alstm",)
    np.testing.assert_array_equal(
        loaded.predict(video).models["alstm"].probability_TC, predictor.predict(video).models["alstm"].probability_TC
    )
    assert ModelBundle.of_folder(tmp_path).digest == parts["alstm"].digest != parts["conv_alstm"].digest


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 2.0])
def test_an_overlap_that_is_no_share_is_refused(predictor, video, overlap):
    with pytest.raises(ValueError, match=r"overlap = .*: must be 0 or more, and less than 1"):
        predictor.predict(video, overlap=overlap)


FLOW = RGB.model_copy(update={"input": "flow", "stack": 2})
CLIP = RGB.model_copy(update={"input": "clip", "backbone": "r3d_18"})
LARGE = RGB.model_copy(update={"image_size": 336})


@pytest.fixture(scope="module")
def of_streams(tmp_path_factory) -> dict[str, ModelBundle]:
    """Return models of clips of 10 frames, of which r3d_18 makes two steps."""
    folder = tmp_path_factory.mktemp("streams")
    kinds = {"rgb": RGB, "flow": FLOW, "clip": CLIP, "large": LARGE}
    bundles = {name: make_bundle(folder / name, frames=10, params=params) for name, params in kinds.items()}
    for name, bundle in bundles.items():
        spec = bundle.input_spec.model_copy(update={"name": name})
        bundles[name] = dataclasses.replace(bundle, input_spec=spec)
    return bundles


@pytest.mark.parametrize("overlap", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_models_of_several_streams_together_say_what_each_says_alone(of_streams, video, overlap, monkeypatch):
    decoded: list[int] = []

    def read(path: Path, wanted: list[Wanted], max_side: int) -> Iterator[tuple[Wanted, np.ndarray]]:
        decoded.append(max_side)
        return read_images(path, wanted, max_side=max_side)

    monkeypatch.setattr(module, "read_images", read)
    together = Predictor(of_streams.values(), device="cpu").predict(video, overlap=overlap)
    assert sorted(decoded) == [640, 672]
    for name, bundle in of_streams.items():
        alone = Predictor([bundle], device="cpu").predict(video, overlap=overlap).models[name]
        np.testing.assert_allclose(together.models[name].probability_TC, alone.probability_TC, atol=1e-5)
        np.testing.assert_allclose(together.models[name].attention_TKK, alone.attention_TKK, atol=1e-5)


def test_a_stream_that_several_models_read_is_opened_once(of_streams, parts, tmp_path):
    same = make_bundle(tmp_path, "lrcn", frames=10, params=FLOW)
    assert len(Predictor([of_streams["flow"], of_streams["rgb"], same], device="cpu")._streams) == 2
    assert len(Predictor(parts.values(), device="cpu")._streams) == 1


def test_each_frame_takes_the_nearest_step_of_a_clip_network(of_streams, video, tmp_path):
    """Of 10 frames, the steps are at 0 and 8; a network without memory would say two things."""
    prediction = Predictor([of_streams["clip"]], device="cpu").predict(video, subsampled=tmp_path / "s.mp4")
    result = prediction.models["clip"]
    assert prediction.video.num_frames == 16
    for values_T in (result.probability_TC, result.attention_TKK):
        for first, steps in ((0, (range(5), range(5, 10))), (10, (range(5), range(5, 6)))):
            of_step = [values_T[[first + frame for frame in frames]] for frames in steps]
            assert all((values == values[0]).all() for values in of_step)
            assert not np.array_equal(of_step[0][0], of_step[1][0])


def test_steps_of_padding_are_masked(of_streams, tmp_path):
    """A video of 3 frames has one valid step of two: the network is told so."""
    told: list[int] = []
    predictor = Predictor([of_streams["clip"]], device="cpu")
    network = predictor._models["clip"].network
    network.register_forward_pre_hook(lambda _, inputs: told.extend(inputs[1].tolist()))
    result = predictor.predict(write_video(tmp_path / "short.mp4", 5)).models["clip"]
    assert told == [1]
    assert result.probability_TC.shape == (3, 3)


def test_what_is_no_video_is_refused_and_leaves_nothing(predictor, tmp_path):
    (tmp_path / "text.avi").write_text("hello")
    with pytest.raises(ValueError, match="not a video that ffmpeg can read"):
        predictor.predict(tmp_path / "text.avi", subsampled=tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_too_long_a_video_is_refused_before_it_is_decoded_or_where_its_header_lies_after(predictor, video, monkeypatch):
    for name, stand_in in (
        ("subsample_video", None),
        ("probe", lambda video: dataclasses.replace(probe(video), seconds=float("nan"))),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stand_in)
            with pytest.raises(ValueError, match=r"1 s long, longer than the 0\.5 s allowed here"):
                predictor.predict(video, max_seconds=0.5)


def test_models_that_do_not_belong_together_are_refused(parts, tmp_path):
    other_clips = make_bundle(tmp_path / "b", "lrcn", frames=5)
    with pytest.raises(ValueError, match="lrcn: trained on clips of another kind than"):
        Predictor([parts["alstm"], other_clips], device="cpu")


def broken_json(folder: Path) -> None:
    (folder / "predictor.json").write_text('{"format": 2}')


BROKEN = {
    "no model": (lambda folder: (folder / "predictor.json").unlink(), "no model to predict with"),
    "another version": (broken_json, "another version of this project"),
    "no checkpoint": (lambda folder: (folder / "checkpoint.safetensors").unlink(), "no such checkpoint"),
    "no backbone": (lambda folder: (folder / "backbone.safetensors").unlink(), "backbone's weights are missing"),
    "no weights": (lambda folder: (folder / "backbone.safetensors").write_bytes(b"x"), "not a state dict"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_clear_line(parts, tmp_path, name):
    parts["alstm"].save(tmp_path)
    damage, reason = BROKEN[name]
    damage(tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        Predictor.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_another_backbone_than_the_trained_one_is_refused(parts, tmp_path):
    other = make_bundle(tmp_path, seed=1)
    mixed = ModelBundle(parts["alstm"].input_spec, parts["alstm"].checkpoint, other.backbones)
    with pytest.raises(ValueError, match="weights_sha256"):
        Predictor([mixed], device="cpu")


def test_a_model_of_an_earlier_version_of_a_flow_method_is_refused(tmp_path, monkeypatch):
    params = RGB.model_copy(update={"input": "flow"})
    with monkeypatch.context() as patch:
        patch.setattr("pipeline_lib.streams.stream.FLOW_VERSIONS", {})
        earlier = make_bundle(tmp_path / "earlier", params=params)
    with pytest.raises(ValueError, match=r"\(method_version None, now 2\); train it again$"):
        Predictor([earlier], device="cpu")
    Predictor([make_bundle(tmp_path / "now", params=params)], device="cpu")
