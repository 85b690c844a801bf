"""Sentences about streams and attention follow from the paired tests."""

from __future__ import annotations

import pytest

from pipeline_lib.report.findings import findings

STREAMS = ("rgb", "flow")
ALL = ("mean_pool", "conv_alstm", "mean_pool@flow", "conv_alstm@flow")


def pair(first, second, difference, low, high):
    return {"first": first, "second": second, "difference": difference, "interval": [low, high], "num_groups": 8}


def sentences(pairs, models=ALL, streams=STREAMS):
    return findings({"pairs": pairs}, models, streams, {name for name in models if "conv_alstm" in name})


def test_a_stream_is_compared_model_by_model_whichever_way_the_pair_is_written():
    pairs = [pair("mean_pool", "mean_pool@flow", -0.3, -0.4, -0.2), pair("conv_alstm@flow", "conv_alstm", 0.25, 0.1, 0.4)]
    assert sentences(pairs) == [
        "The stream flow is more accurate than the stream rgb: mean pool +30 [+20, +40], conv alstm +25 [+10, +40] "
        "(difference in video accuracy in percentage points, 95 % CI over 8 groups)."
    ]


def test_attention_is_compared_with_the_mean_of_the_same_stream():
    pairs = [pair("conv_alstm", "mean_pool", -0.1, -0.2, -0.05), pair("mean_pool@flow", "conv_alstm@flow", 0.2, 0.1, 0.3)]
    (sentence,) = sentences([*pairs, pair("conv_alstm@flow", "mean_pool", 0.5, 0.4, 0.6)])
    assert sentence.startswith(
        "A model with attention is less accurate than the mean over cells: conv alstm \u221210 [\u221220, \u22125], conv"
    )


def test_models_that_name_no_stream_read_rgb_wherever_it_stands():
    pairs = [pair("mean_pool", "mean_pool@flow", -0.3, -0.4, -0.2)]
    (sentence,) = sentences(pairs, models=("mean_pool", "mean_pool@flow"), streams=("flow", "rgb"))
    assert sentence.startswith("The stream rgb is less accurate than the stream flow: mean pool \u221230")


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(-0.1, 0.2), (0.0, 0.3)], "is not clearly better or worse than"),
        ([(0.1, 0.2), (-0.1, 0.3)], "is more accurate in 1 of 2 comparisons with"),
        ([(0.1, 0.2), (-0.3, -0.1)], "is more accurate in 1 and less accurate in 1 of 2 comparisons with"),
    ],
)
def test_the_verdict_needs_intervals_without_zero(intervals, verdict):
    models = ("conv_alstm", "conv_alstm@flow"), ("mean_pool", "mean_pool@flow")
    pairs = [
        pair(second, first, sum(interval) / 2, *interval) for (first, second), interval in zip(models, intervals, strict=True)
    ]
    (sentence,) = sentences(pairs)
    assert f"The stream flow {verdict} the stream rgb: " in sentence


def test_nothing_is_said_where_nothing_can_be_compared():
    assert sentences([]) == []
    assert sentences([pair("conv_alstm", "lrcn", 0.5, 0.4, 0.6)], ("conv_alstm", "lrcn"), ("rgb",)) == []
    assert sentences([pair("mean_pool", "logistic_regression", 0.5, 0.4, 0.6)], ("mean_pool",), ("rgb",)) == []
