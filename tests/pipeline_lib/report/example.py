"""A run to be shown, made up: the folders that evaluate and heatmaps leave, and the rest of a `RunReport`."""

# N clips, T frames of a clip, K grid side

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from pipeline_lib.params import Params
from pipeline_lib.report import ModelReport, RunReport
from pipeline_lib.video.writing import VideoWriter

T, K, FPS = 12, 7, 15.0
EVIL = '"></script><script>document.title = 1</script> & é'
CLASSES = ("run", "sit", EVIL)


def write_clip(folder: Path) -> None:
    """Write the video and the still that all clips of the example share."""
    with VideoWriter(folder / "plain.mp4", width=96, height=64, fps=FPS, crf=30) as writer:
        for frame in range(T):
            writer.write(np.full((64, 96, 3), (20 * frame, 120, 90), np.uint8))
    Image.new("RGB", (96, 64), (120, 120, 90)).save(folder / "still.jpg")


def predict(model: int, clip: int, classes: Sequence[str]) -> tuple[str, list[str], list[float]]:
    """Return a clip's true class and each frame's predicted class and confidence; the first model is always right."""
    true, other = (classes[(clip + step) % len(classes)] for step in (0, 1))
    is_wrong = model > 0 and (clip + model) % 3 == 0
    frames = [other if is_wrong and frame > 2 else true for frame in range(T)]
    return true, frames, [0.5 + 0.5 * frame / T for frame in range(T)]


def write_evaluation(folder: Path, model: int, num_clips: int, classes: Sequence[str]) -> pd.DataFrame:
    """Fill what a model's evaluate stage leaves and return its predictions."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(num_clips):
        true, frames, confidence = predict(model, number, classes)
        verdict = max(set(frames), key=frames.count)
        video = f"{true}/{number}.avi"
        rows.append((f"{video}#00000", video, true, verdict, 0.875, verdict == true, T, frames, confidence))
    columns = ["clip", "video", "class_name", "predicted", "confidence", "correct", "valid_frames"]
    predictions = pd.DataFrame(rows, columns=[*columns, "frame_predicted", "frame_confidence"])
    predictions.to_parquet(folder / "predictions.parquet")
    predictions.assign(confidence_by_mean=0.875, correct_by_mean=predictions["correct"]).to_parquet(folder / "videos.parquet")
    recall = predictions.groupby("class_name")["correct"].mean()
    table = pd.DataFrame(
        {"class": list(classes), "clips": num_clips // len(classes), "recall": recall.reindex(classes).to_numpy()}
    )
    table.to_csv(folder / "per_class.csv", index=False)
    maps_NTKK = np.random.default_rng(model).dirichlet(np.full(K * K, 0.2), (num_clips, T)).reshape(num_clips, T, K, K)
    with h5py.File(folder / "attention.h5", "w") as file:
        file.create_dataset("attention", data=maps_NTKK.astype(np.float32))
        file.create_dataset("clip", data=predictions["clip"].tolist(), dtype=h5py.string_dtype())
    return predictions


def write_heatmaps(folder: Path, predictions: pd.DataFrame) -> None:
    """Fill what a model's heatmaps stage leaves; it chose every clip."""
    folder.mkdir(parents=True)
    write_clip(folder)
    clips = [
        {
            **{name: row[name] for name in ("clip", "video", "class_name", "predicted", "confidence", "correct")},
            "outcome": "success" if row["correct"] else "failure",
            "plain": "plain.mp4",
            "still": "still.jpg",
        }
        for row in predictions.to_dict("records")
    ]
    notes = ["failures: none to show, no clip is wrong"] if predictions["correct"].all() else []
    rules = {"success": "best first", "failure": "worst first"}
    content = {"rules": rules, "notes": notes, "grid": K, "fps": FPS, "clips": clips}
    (folder / "heatmaps.json").write_text(json.dumps(content))


def make_model(
    folder: Path, name: str, number: int, *, num_clips: int = 6, classes: Sequence[str] = CLASSES, attends: bool = True
) -> ModelReport:
    """Return a model whose folders lie under `folder`."""
    predictions = write_evaluation(folder / name / "evaluation", number, num_clips, classes)
    if attends:
        write_heatmaps(folder / name / "heatmaps", predictions)
    accuracy = float(predictions["correct"].mean())
    metrics = dict.fromkeys(("frame_accuracy", "clip_accuracy", "video_accuracy"), accuracy)
    metrics |= {"chance": 0.25, "majority_class": 0.3, "majority_class_video": 0.4, "num_clips": num_clips, "num_videos": 40}
    metrics["num_groups"] = 8
    fixed = {"val_calibrated_loss": 1.2, "train_frame_accuracy": 0.5, "val_frame_accuracy": 0.4}
    epochs = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.5 / epoch} | fixed for epoch in (1, 2, 3)]
    heatmaps = folder / name / "heatmaps" if attends else None
    return ModelReport(name, name, metrics, epochs, folder / name / "evaluation", heatmaps)


def write_maps(model: ModelReport) -> None:
    """Write the `maps.json` of a model."""
    entropy = {"title": "Entropy", "unit": "share of the uniform map's", "better": "lower", "model": 0.831}
    drift = {
        "title": "Drift",
        "unit": "share of attention moved from frame to frame",
        "better": None,
        "model": 0.2,
        "interval": [0.1, 0.3],
    }
    pointing = {"title": "Strongest cell on the actor", "unit": "share of frames", "better": "higher", "model": 0.874}
    measures = {
        "entropy": {**entropy, "interval": [0.8, 0.86], "uniform": 1.0, "centre": 0.91},
        "drift": {**drift, "uniform": None, "centre": None},
        "pointing": {**pointing, "interval": [0.8, 0.95], "uniform": 0.118, "centre": 0.25},
    }
    curve = {"fraction": [0, 0.5, 1], "model": [0.9, 0.3, 0.1], "uniform": [0.9, 0.7, 0.1], "centre": [0.9, 0.6, 0.1]}
    rows = [{"class": "run", "clips": 2, "entropy": 0.77, "drift": None}]
    content = {
        "kind": "attention",
        "num_clips": 6,
        "grid": K,
        "measures": measures,
        "classes": rows,
        "curves": {"deletion": curve, "insertion": curve},
    }
    (model.evaluation / "maps.json").write_text(json.dumps(content))


def write_tubes(model: ModelReport) -> None:
    """Write a model's tube in the first clip; no box is known in its last frame."""
    clip = pd.read_parquet(model.evaluation / "predictions.parquet")["clip"][0]
    corners = {"x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4}
    truth = [[0.1, 0.2, 0.3, 0.44444]] * (T - 1) + [[]]
    iou = [0.8] * (T - 1) + [float("nan")]
    pd.DataFrame({"clip": clip, "frame": range(T), **corners, "iou": iou, "truth": truth}).to_parquet(
        model.evaluation / "tubes.parquet"
    )


CLAIM = {"first": "conv_alstm", "second": "alstm"}
REST = ", less the uniform map's"
CLAIMS = [
    {**CLAIM, "measure": "entropy", "title": f"Entropy{REST}", "difference": -0.07, "interval": [-0.1, -0.04], "holds": True},
    {**CLAIM, "measure": "deletion", "title": f"Deletion{REST}", "difference": 0.01, "interval": [-0.02, 0.04], "holds": None},
]


def results_of(models: Sequence[ModelReport]) -> dict[str, Any]:
    """Return a `results.json` of these models."""
    spread = {"standard_deviation": {}, "intervals": {"video_accuracy": [0.8, 1]}}
    rows = [{"model": model.name, "num_training_runs": 1, "mean": model.metrics, **spread} for model in models]
    pair = {"first": "alstm", "second": "conv_alstm", "difference": -0.025, "p_holm": 0.031}
    return {"models": rows, "controls": {}, "pairs": [pair], "attention_claims": CLAIMS}


def make_run(models: Sequence[ModelReport]) -> RunReport:
    """Return a run of these models, one of whose videos was lost."""
    return RunReport(
        title="A run & its maps",
        summary={
            "dataset": {
                "classes": 4,
                "videos": 99,
                "quarantined": 1,
                "clips": {"train": 120, "val": 21, "test": 80},
                "cut": {"groups": 12, "videos": {"train": 60, "test": 39}, "leaked": 0, "short_padded": 7},
            },
            "stages": {"fetch": {"cache": "hit", "seconds": 0.4}, "train": {"cache": "miss", "seconds": 125.0}},
            "models": {model.name: {"mlflow_run_id": f"run-of-{model.name}"} for model in models},
            "results": results_of(models),
            "mlflow": {"tracking_uri": "sqlite:///x", "parent_run_id": "abc123"},
        },
        params=Params.model_validate({"fetch": {"kind": "hmdb51"}}).model_dump(mode="json"),
        quarantined=pd.DataFrame([{"video": f"run/{EVIL}", "reason": "moov atom is missing", "stderr": "[mov] <b>bad</b>"}]),
        models=models,
        tools={"torch": "2.15.0"},
    )
