"""Deployments of the flow: `har/full`, `har/demo` and one a stage. Running this module serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pipeline_lib.stages import Stage

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

UP_TO: dict[Stage, str] = {
    "fetch": "Fetch the video collection.",
    "subsample": "Everything up to videos at 15 fps.",
    "chunk": "Everything up to the clip table.",
    "finetune": "Everything up to the fine-tuned backbone.",
    "features": "Everything up to features in HDF5.",
    "sweep": "The whole pipeline, with a hyper-parameter search before training.",
    "train": "Everything up to trained models.",
    "evaluate": "Everything up to evaluation on the test split.",
    "heatmaps": "Everything up to heatmap videos.",
}
DESCRIPTIONS: dict[str, str] = {
    "full": "The whole pipeline on HMDB-51, from its archive to the report.",
    "demo": "The whole pipeline on the small collection that `python -m demo` renders.",
} | {str(stage): text for stage, text in UP_TO.items()}
DEMO_PARAMS = "demo"


def deployment_names() -> list[str]:
    """Return the deployments' names: `full`, `demo` and the stages."""
    return list(DESCRIPTIONS)


def deployment_parameters(name: str) -> dict[str, Any]:
    """Return the flow parameters of a deployment that differ from the defaults."""
    if name == "full":
        return {}
    if name == "demo":
        return {"params": DEMO_PARAMS}
    # A sweep runs the later stages too: they compare its best model with the default on the test split.
    return {"settings": ["sweep.enabled=true"]} if name == "sweep" else {"until": name}


def serve_deployments() -> None:
    """Register every deployment and serve runs, one at a time, until stopped."""
    from prefect import serve

    from flows.har import har

    deployments = [
        har.to_deployment(name, parameters=deployment_parameters(name), description=description, tags=["har"])
        for name, description in DESCRIPTIONS.items()
    ]
    # A run locks the workspace; others queue here instead of failing there.
    serve(*cast("list[RunnerDeployment]", deployments), limit=1, print_starting_message=False)


if __name__ == "__main__":
    serve_deployments()
