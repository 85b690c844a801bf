"""The PostgreSQL server of a team: its address, and one database each for MLflow, Prefect and sweeps.

An address is SQLAlchemy's `URL`, which prints `***` for the password. What it leaves out (password, TLS) is read as
PostgreSQL's own programs read it: PGPASSWORD, `~/.pgpass`, PGSSLMODE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, LiteralString

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pipeline_lib.errors import UserError

if TYPE_CHECKING:
    from psycopg import Connection

VARIABLE = "HAR_DATABASE"
"""Environment variable with the server's address."""
PREFIX = "har"
"""Default first word of the databases' names."""
MAINTENANCE = "postgres"
"""Database that every server has."""
CONNECT_SECONDS = 10
DRIVERS = ("psycopg", "asyncpg")
ACCEPTED = "postgresql://HOST:PORT/NAME, with USER:PASSWORD@ before HOST, and special characters of the password as %XX"
"""In this order because messages are printed with `***` for what stands before an @ of an address."""
MAY_CREATE: LiteralString = (
    "select has_schema_privilege(current_schema(), 'CREATE') and has_database_privilege(current_database(), 'CREATE')"
)


def make_databases(address: str, purposes: Iterable[str], key: str = VARIABLE) -> dict[str, URL]:
    """Create the databases `<name>_<purpose>` that are missing, and return their complete URLs by purpose.

    Args:
        address: `postgresql://user:password@host:port[/name]`; password, port and name may be left out.
        purposes: what the databases are for.
        key: option or variable that the address is from, for messages.

    Raises:
        UserError: the address is malformed, a driver is missing, the server does not answer, or the user lacks a privilege.
    """
    server = _read(address, key)
    if missing := [name for name in DRIVERS if find_spec(name) is None]:
        raise UserError(f"{key}: {missing[0]} is not installed; pip install 'har[postgresql]' brings it")
    names = {purpose: f"{server.database}_{purpose}" for purpose in purposes}
    with connect(server.set(database=MAINTENANCE), key) as connection:
        present = {name for (name,) in connection.execute("select datname from pg_database")}
        for name in sorted(set(names.values()) - present):
            _create(connection, name, key)
    return {purpose: _complete(server.set(database=name), key) for purpose, name in names.items()}


def _read(address: str, key: str) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise UserError(f"{key}: not an address like {ACCEPTED}") from None
    if url.drivername != "postgresql" or not url.host:
        raise UserError(f"{key}: not an address like {ACCEPTED}")
    if others := sorted(set(url.query) - {"sslmode"}):
        raise UserError(f"{key}: the address has ?{others[0]}=; only sslmode is accepted there")
    name = url.database or PREFIX
    if not re.fullmatch("[a-z_][a-z0-9_]{0,49}", name):
        raise UserError(f"{key}: database name {name}: use at most 50 of a-z, 0-9 and _, a letter first")
    return url.set(drivername="postgresql+psycopg", database=name)


def connect(url: URL, key: str, **options: Any) -> Connection[tuple[Any, ...]]:
    """Connect to a database, each statement a transaction.

    Raises:
        UserError: the server does not answer, or refuses.
    """
    import psycopg

    values = url.translate_connect_args(username="user", database="dbname") | dict(url.query) | options
    try:
        return psycopg.connect(**values, connect_timeout=CONNECT_SECONDS, application_name="har", autocommit=True)
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        if "no password supplied" in reason:
            reason = "it asks for a password; put it into PGPASSWORD or ~/.pgpass"
        raise UserError(f"{key}: the database at {url.host}:{url.port or 5432} cannot be used: {reason}") from None


def _create(connection: Connection[tuple[Any, ...]], name: str, key: str) -> None:
    from psycopg import errors, sql

    try:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    except (errors.DuplicateDatabase, errors.UniqueViolation):
        pass  # another process created it
    except errors.InsufficientPrivilege:
        user = connection.info.user
        raise UserError(
            f"{key}: there is no database {name}, and {user} may not create it; "
            f"an administrator can: CREATE DATABASE {name} OWNER {user}"
        ) from None


def _complete(url: URL, key: str) -> URL:
    """Return the URL with all that the connection was made with, after checking that tables can be created there."""
    with connect(url, key) as connection:
        info, row = connection.info, connection.execute(MAY_CREATE).fetchone()
        if row != (True,):
            raise UserError(
                f"{key}: {info.user} may not create tables in database {url.database}; "
                f"an administrator can allow it: ALTER DATABASE {url.database} OWNER TO {info.user}"
            )
        return url.set(port=info.port, username=info.user, password=info.password or None)


def for_asyncpg(url: URL) -> URL:
    """Return the URL for asyncpg, which has another name for `sslmode`."""
    return url.set(drivername="postgresql+asyncpg", query={"ssl": mode} if (mode := url.query.get("sslmode")) else {})


def reveal(url: URL) -> str:
    """Return the URL as text with its password: for the environment of a process, never for a command line, file or log."""
    return url.render_as_string(hide_password=False)
