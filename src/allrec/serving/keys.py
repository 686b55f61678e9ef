"""API keys: shown once, stored as a hash, each with a tenant and scopes."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_hex, token_urlsafe
from time import time

from sqlalchemy import select, update

from allrec.errors import InputError
from allrec.serving.database import Database
from allrec.serving.records import check_tenant
from allrec.serving.schema import api_keys

SCOPES = ("read", "write", "admin")
PREFIX = "allrec_"
SECRET_BYTES = 32
MAX_LENGTH = 256


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key without its secret."""

    key_id: str
    scopes: frozenset[str]
    created_at: float
    revoked_at: float | None


class Keys:
    """The API keys of a database.

    The secret has 256 random bits, so that a plain SHA-256 of it cannot be searched; a slow hash, which protects
    passwords that people choose, would only cost every request.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, *, scopes: Iterable[str]) -> str:
        """Makes a key, and returns its text: the only time that it can be read.

        Raises:
            InputError: no scope, or an unknown one.
        """
        check_tenant(tenant)
        wanted = sorted(set(scopes))
        if not wanted or not set(wanted) <= set(SCOPES):
            raise InputError(f"got the scopes {', '.join(wanted) or 'none'}, expected some of {', '.join(SCOPES)}.")
        key_id = token_hex(8)
        plain = f"{PREFIX}{key_id}_{token_urlsafe(SECRET_BYTES)}"
        row = {"key_id": key_id, "digest": _digest(plain), "scopes": wanted, "created_at": time(), "revoked_at": None}
        with self._database.write() as connection:
            connection.execute(api_keys.insert().values(tenant=tenant, **row))
        return plain

    def check(self, plain: str) -> tuple[str, frozenset[str]] | None:
        """The tenant and scopes of a key; None for one that is unknown or revoked."""
        if not plain.startswith(PREFIX) or len(plain) > MAX_LENGTH:
            return None
        query = select(api_keys.c.tenant, api_keys.c.scopes).where(
            api_keys.c.digest == _digest(plain), api_keys.c.revoked_at.is_(None)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else (row.tenant, frozenset(row.scopes))

    def revoke(self, tenant: str, *, key_id: str) -> bool:
        """Makes a key invalid from the next request on, and says whether there was a valid one."""
        statement = update(api_keys).where(
            api_keys.c.tenant == tenant, api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None)
        )
        with self._database.write() as connection:
            return bool(connection.execute(statement.values(revoked_at=time())).rowcount)

    def entries(self, tenant: str) -> list[KeyEntry]:
        """A tenant's keys, oldest first, without their secrets."""
        columns = (api_keys.c[name] for name in KeyEntry.__dataclass_fields__)
        query = select(*columns).where(api_keys.c.tenant == tenant).order_by(api_keys.c.created_at, api_keys.c.key_id)
        with self._database.read() as connection:
            return [KeyEntry(row[0], frozenset(row[1]), *row[2:]) for row in connection.execute(query)]


def _digest(plain: str) -> str:
    return sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
