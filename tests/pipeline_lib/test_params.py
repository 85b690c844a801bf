from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.params import MODELS, STAGES, EvaluateParams, ModelParams, Params, StreamParams, TrainParams, load_params

PARAMS = sorted((Path(__file__).parents[2] / "params").glob("*.yaml"))

FUSED = "fetch: {{kind: hmdb51}}\ntrain: {{models: [alstm, lrcn]}}\nevaluate: {{fusions: {{{}}}}}"


@pytest.fixture
def params_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_every_parameter_file_of_the_project_loads(path):
    assert isinstance(load_params(path), Params)


def test_every_stage_has_a_section():
    assert set(STAGES) <= set(Params.model_fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fetch: {kind: hmdb51}\ntrain: {epoch: 3}", ["train.epoch", "unknown key", "epochs"]),
        ("fetch: {kind: hmdb51}\ntrian: {epochs: 3}", ["trian", "unknown key", "train"]),
        ("fetch: {kind: hmdb51}\ntrain: {epochs: ten}", ["train.epochs", "'ten'", "integer"]),
        ("fetch: {kind: hmdb51}\ntrain: {epochs: true}", ["train.epochs", "True", "integer"]),
        ("fetch: {kind: hmdb51}\ntrain: {epochs: 0}", ["train.epochs", "0", "greater than 0"]),
        ("fetch: {kind: hmdb51}\ntrain: {learning_rate: .nan}", ["train.learning_rate", "nan"]),
        ("fetch: {kind: hmdb51}\ntrain: {models: []}", ["train.models"]),
        ("fetch: {kind: hmdb51}\ntrain: {models: [alstm, alstm]}", ["train.models", "twice"]),
        ("fetch: {kind: hmdb51}\nchunk: {fold: 4}", ["chunk.fold", "4", "1, 2 or 3"]),
        ("fetch: {kind: hmdb51}\nchunk: {fold: [1, 1]}", ["chunk.fold", "[1, 1]", "1, 2 or 3"]),
        ("fetch: {kind: hmdb51}\nchunk: {fold: []}", ["chunk.fold", "[]", "1, 2 or 3"]),
        ("fetch: {kind: hmdb51}\ntrain: {seeds: [0, 0]}", ["train.seeds", "twice"]),
        ("fetch: {kind: hmdb51}\ntrain: {overrides: {alstm: {unit: 3}}}", ["train.overrides.alstm.unit", "units"]),
        ("fetch: {kind: hmdb51}\ntrain: {overrides: {alstm: {units: -3}}}", ["train.overrides.alstm.units", "-3", "0"]),
        ("fetch: {kind: hmdb51}\ntrain: {overrides: {i3d: {units: 3}}}", ["i3d", "alstm"]),
        ("fetch: {kind: hmdb51}\nsweep: {learning_rate: [1, 0.1]}", ["sweep.learning_rate", "smaller"]),
        ("fetch: {kind: hmdb51}\ntrain: {models: [alstm]}\nsweep: {enabled: true}", ["sweep.models", "conv_alstm"]),
        ("fetch: {kind: hmdb51}\nheatmaps: {side: 801}", ["heatmaps.side", "801"]),
        (FUSED.format("Two: {members: [alstm, lrcn]}"), ["evaluate.fusions", "'Two'", "lower-case"]),
        (FUSED.format("lrcn: {members: [alstm, lrcn]}"), ["evaluate.fusions", "'lrcn'", "another name"]),
        (FUSED.format("two: {members: [alstm]}"), ["evaluate.fusions.two.members", "at least 2"]),
        (FUSED.format("two: {members: [alstm, alstm]}"), ["evaluate.fusions.two", "members", "twice"]),
        (FUSED.format("two: {members: [alstm, lrcn@flow]}"), ["evaluate.fusions.two.members", "lrcn@flow", "train.models"]),
        (FUSED.format("two: {members: [alstm, i3d]}"), ["evaluate.fusions.two", "i3d", "alstm"]),
        (FUSED.format("two: {members: [alstm, lrcn], method: max}"), ["evaluate.fusions.two.method", "'max'", "svm"]),
        (
            FUSED.format("two: {members: [alstm, lrcn], wights: [1, 2]}"),
            ["evaluate.fusions.two.wights", "unknown key", "weights"],
        ),
        (FUSED.format("two: {members: [alstm, lrcn], weights: [1, 2]}"), ["evaluate.fusions.two", "method: mean", "remove"]),
        (FUSED.format("two: {members: [alstm, lrcn], method: weights, weights: [1]}"), ["evaluate.fusions.two", "[1.0]", "2"]),
        (
            FUSED.format("two: {members: [alstm, lrcn], method: weights, weights: [0, 0]}"),
            ["evaluate.fusions.two", "not all 0"],
        ),
        (
            FUSED.format("two: {members: [alstm, lrcn], method: weights, weights: [1, .inf]}"),
            ["evaluate.fusions.two", "finite"],
        ),
        ("fetch: {kind: rar}", ["fetch.kind", "'rar'", "hmdb51"]),
        ("fetch: {kind: folder}", ["fetch.videos", "folder"]),
        ("fetch: {kind: synthetic, synthetic: {seed: 5}}", ["fetch.kind: synthetic", "python -m demo FOLDER"]),
        ("fetch: {kind: hmdb51}\ntrain: {models: alstm}", ["train.models", "'alstm'", "list"]),
        ("fetch: {kind: hmdb51}\ntrain: {models: [Alstm]}", ["train.models.0", "'Alstm'", "alstm"]),
        ("fetch: {kind: hmdb51}\ntrain: [alstm]", ["train = ['alstm']", "section with keys"]),
        ("fetch: {kind: hmdb51}\nfinetune: {blocks: few}", ["finetune.blocks = 'few'", "integer or 'all'"]),
        ("fetch: {kind: hmdb51, videos: 3}", ["fetch.videos = 3", "string or a list"]),
        ("fetch: {kind: hmdb51}\nfeatures: {input: flow, bound: .inf}", ["features.bound = inf", "finite"]),
        (
            "fetch: {kind: hmdb51}\nfeatures: {input: flow, method_weights: raft.pth}",
            ["features: method_weights", "`method: raft`", "dis"],
        ),
        (
            "fetch: {kind: hmdb51}\ntrain: {overrides: {alstm@flow: {units: 3}}}",
            ["train.overrides has alstm@flow", "only rgb", "add flow"],
        ),
        (
            "fetch: {kind: hmdb51}\ntrain: {overrides: {alstm@rgb: {units: 3}}}",
            ["train.overrides has alstm@rgb", "train.models calls alstm"],
        ),
        (FUSED.format("two: {members: [alstm, lrcn@rgb]}"), ["evaluate.fusions.two.members", "lrcn@rgb", "write lrcn,"]),
        ("chunk: {fold: 1}", ["fetch", "missing"]),
        ("fetch: [", ["not valid YAML"]),
        ("- a list", ["sections"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_accepted(params_file, text, words):
    with pytest.raises(ValueError, match=r".") as error:
        load_params(params_file(text))
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


def test_every_mistake_has_its_own_line(params_file):
    with pytest.raises(ValueError, match=r".") as error:
        load_params(params_file("fetch: {kind: hmdb51}\ntrain: {epochs: 0, patience: no}"))
    assert len(str(error.value).splitlines()) == 2


def test_a_key_that_is_gone_is_ignored_with_a_warning(params_file, caplog):
    params = load_params(params_file("fetch: {kind: hmdb51}\nsubsample: {workers: 3, fps: 10}"))
    assert params.subsample.fps == 10
    assert "subsample.workers is ignored" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml: no such parameter file"):
        load_params(tmp_path / "nothing.yaml")


def test_settings_override_the_file(params_file):
    path = params_file("fetch: {kind: hmdb51}\ntrain: {epochs: 3}")
    settings = [
        "train.epochs=7",
        "train.learning_rate=1e-3",
        "train.models=[alstm]",
        "train.overrides.alstm.units=5",
        "tracking.uri=null",
    ]
    params = load_params(path, settings)
    assert (params.train.epochs, params.train.models, params.train.of("alstm").units) == (7, ("alstm",), 5)
    assert params.train.learning_rate == 0.001


@pytest.mark.parametrize("setting", ["train.epochs", "=3", "train.=3", "train.epochs.deep=3", "train.epochs=["])
def test_a_malformed_setting_is_refused(params_file, setting):
    with pytest.raises(ValueError, match="--set"):
        load_params(params_file("fetch: {kind: hmdb51}\ntrain: {epochs: 3}"), [setting])


def test_what_only_says_where_or_how_fast_stays_out_of_the_recipe():
    params = Params.model_validate({"fetch": {"kind": "hmdb51"}})
    assert "device" not in params.features.recipe()
    assert "batch_frames" not in params.features.recipe()
    assert "compression" not in params.features.recipe()
    assert "max_quarantined" not in params.subsample.recipe()
    assert params.subsample.recipe()["fps"] == 15


def test_a_model_depends_only_on_its_own_parameters():
    fetch = {"kind": "hmdb51"}
    first = Params.model_validate({"fetch": fetch}).train
    changes = {"conv_alstm_units": 8, "models": ["alstm"], "head_channels": 7, "overrides": {"lrcn": {"dropout": 0.1}}}
    second = Params.model_validate({"fetch": fetch, "train": changes}).train
    assert first.of("alstm") == second.of("alstm")
    assert first.of("attention_pool") == second.of("attention_pool")
    assert first.of("conv_alstm") != second.of("conv_alstm")
    assert first.of("lrcn") != second.of("lrcn")
    assert first.of("conv_alstm").attention_penalty is None
    assert first.of("alstm").recipe().keys() == first.of("conv_alstm").recipe().keys()


def test_several_splits_and_seeds():
    values = {"fetch": {"kind": "hmdb51"}, "chunk": {"fold": [1, 3]}, "train": {"seeds": [4, 5], "seed": 9}}
    params = Params.model_validate(values)
    assert params.chunk.folds == (1, 3)
    assert params.chunk.of_fold(3).recipe() == Params.model_validate(values | {"chunk": {"fold": 3}}).chunk.recipe()
    assert params.train.all_seeds == (4, 5)
    assert params.train.of("alstm").seed == 4
    assert params.train.of("alstm", 5).seed == 5
    assert Params.model_validate(values | {"train": {"seed": 9}}).train.all_seeds == (9,)


def test_a_fusion_does_not_change_what_models_are_scored_with(params_file):
    fused = load_params(params_file(FUSED.format("two: {members: [alstm, lrcn], method: weights, weights: [1, 2]}")))
    assert fused.evaluate.fusions["two"].weights == (1, 2)
    assert fused.evaluate.recipe() == load_params(params_file("fetch: {kind: hmdb51}")).evaluate.recipe()


STREAMS = {
    "rgb": {"backbone": "vgg_small", "weights": "random"},
    "flow": {"input": "flow", "stack": 5, "weights": "random"},
    "clip3d": {"input": "clip", "backbone": "mc3_18", "weights": "kinetics", "image_size": 112},
}


def with_streams(models: list[str], **features: Any) -> Params:
    values = {"fetch": {"kind": "hmdb51"}, "features": {"streams": STREAMS} | features, "train": {"models": models}}
    return Params.model_validate(values)


def test_flat_features_are_one_stream_called_rgb_with_the_same_recipe():
    features = Params.model_validate({"fetch": {"kind": "hmdb51"}, "features": {"grid": 5, "device": "cpu"}}).features
    assert list(features.all_streams) == ["rgb"]
    assert features.all_streams["rgb"].recipe() == features.recipe()
    assert features.all_streams["rgb"].device == "cpu"
    assert set(features.recipe()) == {"backbone", "weights", "image_size", "grid", "precision", "seed"}


def test_models_read_the_first_stream_or_the_one_they_name():
    params = with_streams(["alstm", "alstm@flow", "mean_pool@clip3d"], device="cpu")
    assert [params.streams_of(model) for model in params.train.models] == [("rgb",), ("flow",), ("clip3d",)]
    assert {stream.device for stream in params.features.all_streams.values()} == {"cpu"}


def test_motion_models_read_the_first_stream_and_the_first_of_flow_or_the_two_they_name():
    params = with_streams(["motion_alstm", "motion_conv_alstm@clip3d+flow"])
    assert [params.streams_of(model) for model in params.train.models] == [("rgb", "flow"), ("clip3d", "flow")]


def test_attention_over_time_reads_a_clip_stream_beside_the_first_or_one_alone():
    params = with_streams(["temporal_attention", "temporal_attention@rgb", "temporal_attention@flow+clip3d"])
    assert [params.streams_of(model) for model in params.train.models] == [("rgb", "clip3d"), ("rgb",), ("flow", "clip3d")]
    alone = Params.model_validate({"fetch": {"kind": "hmdb51"}, "train": {"models": ["temporal_attention"]}})
    assert alone.streams_of("temporal_attention") == ("rgb",)
    first = Params.model_validate(
        {"fetch": {"kind": "hmdb51"}, "features": {"streams": {"clip3d": STREAMS["clip3d"]}}, "train": {"models": ["alstm"]}}
    )
    assert first.streams_of("temporal_attention") == ("clip3d",)


def test_hyper_parameters_of_one_model_are_not_in_the_recipes_of_others():
    train = TrainParams(overrides={"temporal_attention": {"spatial": "local", "decoder_steps": 2}})
    assert {"spatial": "local", "decoder_steps": 2}.items() <= train.of("temporal_attention").recipe().items()
    assert train.of("temporal_attention").attends
    assert not TrainParams().of("temporal_attention").attends
    for model in MODELS:
        if model != "temporal_attention":
            changed = TrainParams(decoder_steps=7, spatial="local").of(model)
            assert changed == TrainParams().of(model)
            assert not {"spatial", "decoder_steps"} & changed.recipe().keys()
            assert ModelParams.model_validate(changed.recipe()) == changed


def test_what_sharmas_vote_adds_is_absent_from_other_recipes():
    assert "vote_last" not in EvaluateParams().recipe()
    assert EvaluateParams(vote_last=16).recipe()["vote_last"] == 16


def test_overrides_hold_for_a_model_on_every_stream_or_on_one():
    params = with_streams(["alstm", "alstm@flow"])
    train = params.train.model_copy(update={"overrides": {"alstm": {"units": 8, "dropout": 0.1}, "alstm@flow": {"units": 16}}})
    assert (train.of("alstm").units, train.of("alstm@flow").units) == (8, 16)
    assert train.of("alstm@flow").dropout == 0.1
    assert train.of("alstm@clip3d") == train.of("alstm")


@pytest.mark.parametrize(
    "values", [{}, {"input": "flow"}, {"input": "flow", "stack": 5, "method": "tvl1"}, {"input": "clip"}], ids=str
)
def test_a_streams_recipe_gives_the_stream_again(values):
    """Models are registered with the streams of their features' recipes."""
    stream = StreamParams(**values)
    recipe = stream.recipe()
    again = StreamParams(**{name: recipe[name] for name in StreamParams.model_fields if name in recipe})
    assert again.recipe() == recipe


def test_recipes_hold_what_a_stream_is_made_from():
    flow = with_streams(["alstm"]).features.all_streams["flow"]
    assert flow.recipe()["encoding"] == "stack"
    assert flow.input_channels == 10
    assert flow.model_copy(update={"bound": 10.0}).recipe() != flow.recipe()
    clip = with_streams(["alstm"]).features.all_streams["clip3d"]
    assert clip.recipe()["input"] == "clip"
    assert "bound" not in clip.recipe()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("train: {models: [mean_pool@depth]}", r"mean_pool@depth, but features\.streams has only rgb; add depth there"),
        ("train: {models: [meanpool]}", r"'meanpool' is not a model; give alstm, .* or one of them on a stream"),
        ("train: {models: [temporal_attention@a+b+c]}", r"temporal_attention reads 1 or 2 streams, not 3"),
        ("train: {models: [mean_pool@a+b]}", r"mean_pool reads 1 stream, not 2"),
        ("train: {models: [alstm, alstm@rgb]}", r"train\.models has alstm and alstm@rgb, which are the same"),
        ("train: {models: [motion_alstm]}", r"motion_alstm, which reads a stream with `input: flow`; add one to features"),
        ("train: {models: [motion_alstm@rgb]}", r"'motion_alstm@rgb': motion_alstm reads 2 streams, not 1"),
        (
            "features: {streams: {rgb: {}, flow: {input: flow, grid: 3}}}\ntrain: {models: [motion_alstm]}",
            r"motion_alstm, .*features\.streams\.rgb\.grid = 7 and features\.streams\.flow\.grid = 3; give them the same",
        ),
        ("train: {motion: speed}", r"train\.motion"),
        ("features: {stack: 3}", r"stack is for streams with `input: flow`, not `input: frame`"),
        ("features: {streams: {flow: {stack: 3}}}", r"features\.streams\.flow: stack is for streams with `input: flow`"),
        ("features: {grid: 5, streams: {rgb: {}}}", r"features\.grid and features\.streams exclude each other"),
        ("features: {streams: {rgb: {device: cpu}}}", r"features\.streams\.rgb\.device: give it once"),
        ("features: {streams: {rgb: {compression: lz4}}}", r"features\.streams\.rgb\.compression: give it once"),
        ("features: {streams: {rgb: {gird: 7}}}", r"unknown key features\.streams\.rgb\.gird; accepted here: input, backbone"),
        ("features: {streams: {a: {input: flow, encoding: image, stack: 2}}}", r"image takes one flow, but stack = 2"),
        ("features: {streams: {}}", r"features\.streams = \{\}"),
    ],
)
def test_what_is_wrong_with_streams_is_one_line(params_file, section, message):
    with pytest.raises(UserError, match=message) as failure:
        load_params(params_file(f"fetch: {{kind: hmdb51}}\n{section}"))
    assert len(str(failure.value).splitlines()) == 1
