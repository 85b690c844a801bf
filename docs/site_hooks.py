"""Hooks of mkdocs: add a page of reference for each room of `pipeline_lib`, and `decisions/` to the contents."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "pipeline_lib"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add what no list in mkdocs.yml can keep up with."""
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"), reverse=True)
    assert config.nav is not None
    config.nav += [
        {"Decisions": [f"decisions/{path.name}" for path in decisions]},
        {"Reference": [{room: f"reference/{room}.md"} for room in _rooms()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of reference; mkdocstrings fills them from the docstrings."""
    for room in _rooms():
        content = f"# {LIBRARY}.{room}\n\n::: {LIBRARY}.{room}\n"
        files.append(File.generated(config, f"reference/{room}.md", content=content))
    return files


def _rooms() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / LIBRARY).glob("*/__init__.py"))
