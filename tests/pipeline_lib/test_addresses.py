from __future__ import annotations

import pytest

from pipeline_lib.addresses import identity, redact, redact_all, redact_text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host:5000/path", "https://***@host:5000/path"),
        ("https://host/file.rar?X-Signature=abc&Expires=9", "https://host/file.rar?X-Signature=***&Expires=***"),
        ("postgresql://me:p@ss@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://token@host/file?abc", "https://***@host/file?abc=***"),
        ("https://host/file.rar", "https://host/file.rar"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("folder/what?.rar", "folder/what?.rar"),
        ("http://me:secret@[broken/x", "http://***@[broken/x"),
    ],
)
def test_nothing_secret_is_left(address, shown):
    assert redact(address) == shown


def test_nested_values_are_redacted():
    values = {"fetch": {"videos": ["https://a:b@c/d", "plain"]}, "seed": 1, "none": None}
    assert redact_all(values) == {"fetch": {"videos": ["https://***@c/d", "plain"]}, "seed": 1, "none": None}


def test_addresses_in_a_text_are_redacted():
    text = "GET https://me:secret@host/a?sig=secret failed; see 'http://host/b?key=secret' or file.txt"
    assert redact_text(text) == "GET https://***@host/a?sig=*** failed; see 'http://host/b?key=***' or file.txt"


def test_a_signature_is_no_part_of_an_addresss_identity():
    assert identity("https://host/file.rar") == "https://host/file.rar"
    assert identity("https://host/f?sv=1&sig=a") == identity("https://host/f?sv=2&sig=b") == "https://host/f?sv=***&sig=***"
    assert identity("https://host/f?id=1") != identity("https://host/f?id=2")
