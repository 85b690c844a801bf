"""The simulation of a million videos: its requests to a real object store."""

from __future__ import annotations

import re

import pytest

from benchmarks import million


@pytest.mark.integration
def test_requests_are_measured_with_a_client_s_usual_environment(with_object_store, monkeypatch, capsys):
    monkeypatch.setattr(million, "NUM_REQUESTS", 20)
    million.print_requests("s3://lab/measured")
    kinds = re.findall(r"(put|get|delete).*, (\d+) at once: \d+\.\d\d ms", capsys.readouterr().out)
    assert kinds == [("put", "1"), ("put", "16"), ("get", "1"), ("get", "16"), ("delete", "16")]
    keys = with_object_store.keys()
    assert not [key for key in keys if key.startswith("measured/")]
