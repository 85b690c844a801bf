"""The pipeline: fetch -> subsample -> chunk -> [finetune] -> features -> [sweep] -> train -> evaluate -> heatmaps -> report."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.run import open_run
from flows.settings import reveal
from pipeline_lib.params import load_params
from pipeline_lib.stages import Stage


@flow(name="har", log_prints=True)
def har(
    params: str = "hmdb51",
    settings: list[str] | None = None,
    until: Stage | None = None,
    refresh: list[Stage] | None = None,
) -> dict[str, Any]:
    """Take a video collection from its archive to trained, evaluated and explained models.

    Args:
        params: path of a parameter file, or the name of one that ships with the project.
        settings: `section.key=value` pairs that override the file.
        until: last stage to run, with all stages before it.
        refresh: stages to recompute even if their artifacts are in the cache.

    Returns:
        The run's summary: dataset, stages with cache hits, models with accuracies, MLflow ids, report.
    """
    with open_run(load_params(params, reveal(settings or ())), until=until, refresh=refresh or ()) as run:
        collection = run.fetch()
        shards = run.subsample(collection)
        clips = run.chunk(collection, shards)
        backbones = run.finetune(clips, shards)
        features = run.features(shards, backbones)
        overrides = run.sweep(clips, features)
        models = run.train(clips, features, overrides)
        scores = run.evaluate(models, clips, features, shards, collection)
        run.heatmaps(scores, shards)
        run.report()
    return run.summary
