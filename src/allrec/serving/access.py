"""Who may ask what, and how often: API keys with scopes, and a limit on the rate of each."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from allrec.errors import nearest
from allrec.serving.keys import SCOPES
from allrec.serving.problems import ProblemError
from allrec.serving.service import DEFAULT_TENANT
from allrec.serving.store import Store

LOOPBACK = ("127.0.0.1", "::1", "localhost")
COOKIE = "allrec_key"
CALLERS = 10_000
"""Callers whose rate is remembered."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        tenant: whose data it is.
        scopes: of the key.
    """

    tenant: str
    scopes: frozenset[str]


class Rates:
    """A bucket of tokens for each caller: ``burst`` at once, ``rate`` a second in the long run.

    Args:
        rate: requests a second; 0 does not limit.
        burst: requests at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, caller: str, now: float | None = None) -> float:
        """Takes a token. Returns the seconds to wait where there is none, 0 where there was one."""
        if self.rate <= 0:
            return 0.0
        now = monotonic() if now is None else now
        with self._lock:
            tokens, since = self._buckets.get(caller, (float(self.burst), now))
            tokens = min(float(self.burst), tokens + (now - since) * self.rate)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self.rate
            self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
            self._buckets.move_to_end(caller)
            while len(self._buckets) > CALLERS:
                self._buckets.popitem(last=False)
        return wait


class Access:
    """Checks callers.

    Args:
        store: has the keys.
        needs_key: False lets everyone be the default tenant's administrator; for loopback alone.
        rates: of callers.
        origins: of pages elsewhere that may ask.
    """

    def __init__(self, store: Store, needs_key: bool, rates: Rates, origins: Sequence[str] = ()) -> None:
        self.store, self.needs_key, self.rates, self.origins = store, needs_key, rates, origins

    async def check(self, request: Request, scope: str, cookie: str = "") -> Caller:
        """Who asks; ``cookie`` names one that may hold the key in place of the header.

        Raises:
            ProblemError: no valid key, one without the scope, or too many requests.
        """
        caller, name = Caller(DEFAULT_TENANT, frozenset(SCOPES)), request.client.host if request.client else ""
        if self.needs_key:
            header = request.headers.get("authorization") or f"Bearer {request.cookies.get(cookie, '')}"
            kind, _, plain = header.partition(" ")
            known = await run_in_threadpool(self.store.keys.check, plain) if kind.lower() == "bearer" else None
            if known is None:
                raise ProblemError(
                    401, "expected the header Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"}
                )
            caller, name = Caller(*known), plain
        if (wait := self.rates.take(name)) > 0:
            detail = f"got more than {self.rates.rate:g} requests a second. Wait {wait:.2f} s."
            raise ProblemError(429, detail, {"Retry-After": str(max(1, round(wait)))})
        if scope not in caller.scopes and "admin" not in caller.scopes:
            raise ProblemError(403, f"the key has the scopes {', '.join(sorted(caller.scopes))}, this needs {scope}.")
        if not self.needs_key:
            check_origin(request, self.origins)
        request.state.tenant = caller.tenant
        return caller


def check_origin(request: Request, allowed: Sequence[str]) -> None:
    """Where no key is needed, a page of another site in the same browser could ask; its requests are refused.

    Args:
        request: to be answered.
        allowed: origins of other sites that may ask.

    Raises:
        ProblemError: the address that was asked for is not loopback, or the asking page is of another site.
    """
    asked = urlsplit(f"//{request.headers.get('host', '')}")
    origin = urlsplit(request.headers.get("origin", "")).netloc
    is_foreign = origin not in ("", asked.netloc) or request.headers.get("sec-fetch-site") == "cross-site"
    is_foreign &= request.headers.get("origin") not in allowed
    if asked.hostname not in LOOPBACK or is_foreign:
        raise ProblemError(403, "without API keys only pages of this service itself may ask. Start it with --keys.")


class Scope:
    """A route's need of a scope.

    Args:
        name: "read", "write" or "admin".
        cookie: name of a cookie that may hold the key, for the page.
    """

    def __init__(self, name: str, cookie: str = "") -> None:
        self.name, self.cookie = name, cookie

    async def __call__(self, request: Request) -> Caller:
        """Who asks; see ``Access.check``."""
        access: Access = request.app.state.access
        return await access.check(request, self.name, self.cookie)


def refuse_unknown_parameters(request: Request) -> None:
    """Refuses a parameter behind the ``?`` that the route does not know: a misspelt filter must not filter nothing.

    Raises:
        ProblemError: the parameter, and the nearest known one.
    """
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise ProblemError(422, f"/query: unknown parameter {name[:80]!r}: {nearest(name, known)}.")


KNOWN = Depends(refuse_unknown_parameters)
READ, WRITE, ADMIN = (Depends(Scope(name)) for name in SCOPES)
READ_PAGE, WRITE_PAGE = (Depends(Scope(name, COOKIE)) for name in ("read", "write"))
