from __future__ import annotations

import pytest

from flows.settings import conceal, reveal

SIGNED = "fetch.videos=[https://host/a.zip?X-Signature=secret1, https://me:secret2@host/b.zip]"


def test_what_prefect_stores_has_no_secret_and_the_run_gets_the_original():
    shown = conceal(["train.epochs=3", SIGNED])
    assert shown[0] == "train.epochs=3"
    assert "secret" not in shown[1]
    assert reveal(shown) == ["train.epochs=3", SIGNED]


def test_secrets_that_prefect_has_already_are_warned_of(caplog):
    assert reveal(["tracking.uri=http://me:secret@host"]) == ["tracking.uri=http://me:secret@host"]
    (record,) = caplog.records
    assert "tracking.uri=http://***@host" in record.getMessage()


def test_a_redacted_setting_of_another_process_is_refused():
    with pytest.raises(ValueError, match=r"the secret in this address was not stored"):
        reveal(["tracking.uri=http://***@elsewhere"])
