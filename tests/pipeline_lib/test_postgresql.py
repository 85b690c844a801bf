"""Addresses of PostgreSQL servers, and databases that are made on a real one."""

from __future__ import annotations

import pytest

from pipeline_lib import postgresql as module
from pipeline_lib.addresses import redact_text
from pipeline_lib.errors import UserError
from pipeline_lib.postgresql import for_asyncpg, make_databases, reveal
from tests.servers import PASSWORD, QUOTED

pytestmark = pytest.mark.integration

SHAPE = "not an address like postgresql://HOST:PORT/NAME, with USER:PASSWORD@ before HOST"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("lab-server:5432", SHAPE),
        ("mysql://me:s3cret@lab", SHAPE),
        ("postgresql://me:s3cret@lab:port", SHAPE),
        ("postgresql:///name", SHAPE),
        ("postgresql://me:s3cret@lab/name?options=-csearch_path=x", r"the address has \?options=; only sslmode is accepted"),
        ("postgresql://me:s3cret@lab/Har-2", "database name Har-2: use at most 50 of a-z"),
        ("postgresql://me:s3cret@127.0.0.1:1/har", "the database at 127.0.0.1:1 cannot be used: .*refused"),
    ],
)
def test_a_wrong_address_is_refused_in_one_line_without_its_password(address, message):
    with pytest.raises(UserError, match=f"^--database: {message}") as error:
        make_databases(address, ["mlflow"], "--database")
    assert "s3cret" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert redact_text(str(error.value)) == str(error.value), "the hint is printed as it is"


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "asyncpg" else object())
    with pytest.raises(UserError, match=r"HAR_DATABASE: asyncpg is not installed; pip install 'har\[postgresql\]'"):
        make_databases("postgresql://me@lab", ["mlflow"])


def test_missing_databases_are_made_and_present_ones_kept(postgresql):
    made = make_databases(postgresql.address("made"), ["mlflow", "sweeps"])
    assert {purpose: url.database for purpose, url in made.items()} == {"mlflow": "made_mlflow", "sweeps": "made_sweeps"}
    postgresql.execute("made_mlflow", "create table kept ()")
    again = make_databases(postgresql.address("made"), ["mlflow", "prefect"])
    assert again["mlflow"] == made["mlflow"]
    assert postgresql.execute("made_mlflow", "select tablename from pg_tables where tablename = 'kept'") == [("kept",)]


def test_the_password_may_come_from_postgresqls_own_places(postgresql, tmp_path, monkeypatch):
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{postgresql.port}:*:team:{PASSWORD}\n")
    file.chmod(0o600)
    for name, value in (("PGPASSWORD", PASSWORD), ("PGPASSFILE", str(file))):
        with monkeypatch.context() as own:
            own.setenv(name, value)
            url = make_databases(postgresql.address("own", password=""), ["mlflow"])["mlflow"]
        assert reveal(url) == f"postgresql+psycopg://team:{QUOTED}@127.0.0.1:{postgresql.port}/own_mlflow"
        assert PASSWORD not in f"{url} {url!r}"


def test_a_wrong_password_is_said(postgresql):
    with pytest.raises(UserError, match=r"cannot be used: .*password authentication failed") as error:
        make_databases(postgresql.address(password=":wrong"), ["mlflow"])
    assert "wrong" not in str(error.value)


def test_without_a_password_its_places_are_named(postgresql, tmp_path, monkeypatch):
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"cannot be used: it asks for a password; put it into PGPASSWORD or ~/.pgpass$"):
        make_databases(postgresql.address(password=""), ["mlflow"])


def test_a_user_without_privileges_is_told_what_to_ask_for(postgresql):
    postgresql.execute("postgres", "create role guest login password 'guest'")
    address = postgresql.address("guests", user="guest", password=":guest")
    with pytest.raises(UserError, match=r"no database guests_mlflow, .*: CREATE DATABASE guests_mlflow OWNER guest$"):
        make_databases(address, ["mlflow"])
    postgresql.execute("postgres", "create database guests_mlflow")
    with pytest.raises(UserError, match=r"guest may not create tables .*: ALTER DATABASE guests_mlflow OWNER TO guest$"):
        make_databases(address, ["mlflow"])
    postgresql.execute("postgres", "alter database guests_mlflow owner to guest")
    assert make_databases(address, ["mlflow"])["mlflow"].username == "guest"


def test_asyncpg_gets_tls_under_its_own_name(postgresql):
    url = make_databases(postgresql.address("tls") + "?sslmode=prefer", ["prefect"])["prefect"]
    assert reveal(for_asyncpg(url)).endswith(f"@127.0.0.1:{postgresql.port}/tls_prefect?ssl=prefer")
