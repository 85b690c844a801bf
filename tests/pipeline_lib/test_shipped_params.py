from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.backbones.build import check_name
from pipeline_lib.errors import UserError
from pipeline_lib.evaluate.claims import CLAIMS
from pipeline_lib.networks.registry import MODELS
from pipeline_lib.params import load_params, split_model
from pipeline_lib.params.shipped import find_params, shipped_names

REPOSITORY = Path(__file__).parents[2]


def test_a_bare_name_is_a_shipped_file_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_params("hmdb51") == REPOSITORY / "params" / "hmdb51.yaml"
    assert load_params("hmdb51") == load_params(REPOSITORY / "params" / "hmdb51.yaml")


def test_a_file_of_the_working_folder_does_not_replace_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text("fetch: {kind: hmdb51}")
    monkeypatch.chdir(tmp_path)
    assert find_params("demo") == REPOSITORY / "params" / "demo.yaml"


@pytest.mark.parametrize("path", ["demo.yaml", "./demo", "params/demo", "params/demo.yaml", "../mine.yml"])
def test_a_path_stays_a_path(path):
    assert find_params(path) == Path(path)


def test_an_unknown_name_lists_the_shipped_ones_in_one_line():
    with pytest.raises(UserError) as error:
        find_params("hmbd51")
    (line,) = str(error.value).splitlines()
    assert line.startswith("hmbd51: no such parameter file")
    assert {"demo", "hmdb51"} <= set(shipped_names())
    assert all(name in line for name in shipped_names())


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: no such parameter file.*demo, hmdb51"):
        load_params(tmp_path / "nothing.yaml")


PAPERS = {
    "hmdb51_sharma": ("41.3", "39.5"),
    "ucf101_two_stream": ("73.0", "83.7", "86.9", "88.0", "81.0"),
    "hmdb51_two_stream": ("40.5", "54.6", "58.0", "59.4", "46.6"),
    "ucf101_c3d": ("82.3", "85.2", "90.4"),
    "hmdb51_videolstm": ("43.3", "52.6", "56.4", "63.0"),
    "ucf101_lrcn": ("68.20", "77.28", "78.94", "82.34"),
    "ucf101_karpathy": ("41.3", "64.1", "65.4", "62.2", "59.3", "57.7", "60.9", "63.9"),
    "ucf101_yao": ("no accuracy",),
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_file_loads_and_says_its_numbers_and_what_cannot_be_met(name):
    params = load_params(name)
    assert params.fetch.kind == name.partition("_")[0]
    text = (REPOSITORY / "params" / f"{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"har run {name}" in header
    assert "Published" in header
    assert "What cannot be met" in header
    assert all(number in header for number in PAPERS[name])


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "ucf101_all_systems", *PAPERS])
def test_every_backbone_takes_what_its_stream_gives_and_a_clip_of_this_length(name):
    params = load_params(name)
    for stream in params.features.all_streams.values():
        family = check_name(stream.backbone, "clip" if stream.input == "clip" else "image")
        assert family.pretrained == stream.weights or Path(stream.weights).suffix == ".pth"
    for model in params.train.models:
        assert params.train.of(model).model == model.partition("@")[0]


def test_sharmas_label_is_from_the_last_16_frames_of_a_layer_of_1024_without_penalty():
    params = load_params("hmdb51_sharma")
    model = params.train.of("alstm")
    assert (params.evaluate.vote_last, model.units, model.layers, model.attention_penalty) == (16, 1024, 1, 0.0)
    assert params.evaluate.recipe()["vote_last"] == 16
    assert "vote_last" not in load_params("hmdb51").evaluate.recipe()


def test_two_streams_are_fused_by_average_and_by_svm_and_the_temporal_one_is_tuned():
    for name in ("ucf101_two_stream", "hmdb51_two_stream"):
        params = load_params(name)
        assert [fusion.method for fusion in params.evaluate.fusions.values()] == ["mean", "svm"]
        assert list(params.tuned_streams) == ["flow"]
        assert params.tuned_streams["flow"].input_channels == 20


def test_lrcns_flow_counts_twice_and_has_more_units():
    params = load_params("ucf101_lrcn")
    assert params.evaluate.fusions["lrcn_third"].weights == (1, 2)
    assert (params.train.of("lrcn@rgb").units, params.train.of("lrcn@flow").units) == (256, 1024)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_file_loads(name):
    params = load_params(name)
    for model in params.train.models:
        assert params.streams_of(model)


def test_all_systems_has_every_model_every_ablation_and_what_the_claims_compare():
    params = load_params("ucf101_all_systems")
    assert {split_model(name)[0] for name in params.train.models} == set(MODELS)
    assert {model for claim in CLAIMS for model in claim} <= set(params.train.models)
    on_flow = [name for name in params.train.models if name.startswith("motion_conv_alstm@")]
    assert [params.train.of(name).motion for name in on_flow] == ["state", "map", "magnitude", "shuffled"]
    assert params.chunk.folds == (1, 2, 3)


def test_the_ablations_see_the_same_flow():
    streams = load_params("ucf101_all_systems").features.all_streams
    flow, *others = (stream.recipe() for name, stream in streams.items() if name.startswith("flow"))
    assert others == [flow] * 3  # so that one artifact serves all


def test_karpathys_mean_is_of_all_four_and_starts_from_a_tuned_network():
    params = load_params("ucf101_karpathy")
    assert params.evaluate.fusions["karpathy_mean"].members == params.train.models
    assert list(params.tuned_streams) == ["rgb"]


def test_yaos_decoder_reads_frames_and_a_3d_network_step_by_step():
    params = load_params("ucf101_yao")
    assert params.streams_of("temporal_attention@rgb+clip3d") == ("rgb", "clip3d")
    assert params.chunk.frames == 26
