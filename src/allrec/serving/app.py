"""The application: routes, access and monitoring around a process's service."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from allrec.errors import InputError
from allrec.serving import admin_routes, data_routes, page_routes, recommend_routes
from allrec.serving.access import LOOPBACK, Access, Rates
from allrec.serving.answers import Recorder
from allrec.serving.description import describe
from allrec.serving.monitoring import Figures, Watched, log_json_lines
from allrec.serving.problems import handle_problems, problem
from allrec.serving.service import DEFAULT_TENANT, Retention, Service, settle_memory
from allrec.serving.store import Store
from allrec.serving.tracing import begin_tracing

STOP_SECONDS = 30


@dataclass(frozen=True)
class ServeConfig:
    """How a run is served.

    Attributes:
        run: folder of the default tenant's run.
        database: address of the store; None is a SQLite file beside the run.
        host: address to listen at.
        port: to listen at.
        needs_key: whether requests need an API key; only loopback may do without.
        with_llm: whether the language model is started, in a process of its own.
        rate: requests a second of each caller; 0 does not limit.
        burst: requests at once of each caller.
        largest_body: in bytes.
        retention_days: that events, answers and feedback are kept.
        origins: of pages elsewhere that may ask (CORS); none where empty.
        cache: folder of cached text embeddings; the usual one where None.
    """

    run: Path
    database: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    needs_key: bool = False
    with_llm: bool = True
    rate: float = 0.0
    burst: int = 200
    largest_body: int = 8 << 20
    retention_days: float = 730.0
    origins: tuple[str, ...] = ()
    cache: Path | None = None

    def __post_init__(self) -> None:
        if not self.needs_key and self.host not in LOOPBACK:
            raise InputError(
                f"got the address {self.host} without API keys, which every machine around could use. Give --keys, "
                "or listen at 127.0.0.1."
            )

    @property
    def store_url(self) -> str:
        """Address of the store."""
        run = Path(self.run).resolve()
        return self.database or f"sqlite:///{run.parent / (run.name + '.store.db')}"


def create_app(config: ServeConfig) -> FastAPI:
    """The application, with its store open and its run loaded.

    Raises:
        InputError: no run there, a damaged one, or a store that cannot be reached.
    """
    store = Store.open(config.store_url)
    try:
        service = Service(store, config.run, cache=config.cache, with_llm=config.with_llm)
    except BaseException:
        store.close()
        raise
    figures = Figures()
    recorder, retention = Recorder(store, figures), Retention(service, config.retention_days)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()
        recorder.close()
        retention.close()
        store.close()

    app = FastAPI(title="allrec", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.store, app.state.figures, app.state.recorder = service, store, figures, recorder
    app.state.access = Access(store, config.needs_key, Rates(config.rate, config.burst), config.origins)
    for router in (
        recommend_routes.router,
        admin_routes.router,
        admin_routes.operating,
        data_routes.router,
        page_routes.router,
    ):
        app.include_router(router)
    handle_problems(app)
    describe(app, config.needs_key)
    let_in(app, config.origins)

    def refuse(status: int, detail: str) -> ASGIApp:
        return problem(status, detail)

    app.add_middleware(Watched, figures=figures, largest_body=config.largest_body, refuse=refuse)
    return app


def let_in(app: FastAPI, origins: Sequence[str]) -> None:
    """Lets pages of other origins send every request that a client can send (CORS)."""
    if origins:
        methods, headers = ["GET", "POST", "PUT", "PATCH", "DELETE"], ["Authorization", "Content-Type"]
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=methods, allow_headers=headers)


def serve(config: ServeConfig) -> None:
    """Serves until it is stopped; requests that were begun by then are answered.

    Raises:
        InputError: see ``create_app``.
    """
    log_json_lines()
    begin_tracing()
    app = create_app(config)
    app.state.service.on_switched = settle_memory
    settle_memory()
    uvicorn.run(
        app, host=config.host, port=config.port, access_log=False, log_level="warning",
        timeout_graceful_shutdown=STOP_SECONDS, server_header=False, backlog=2048,
    )  # fmt: skip


def print_new_key(config: ServeConfig, tenant: str = DEFAULT_TENANT) -> None:
    """Makes a tenant's administrator's key and writes it to the standard output.

    Raises:
        InputError: a name that no tenant can have, or a store that cannot be reached.
    """
    with Store.open(config.store_url) as store:
        sys.stdout.write(store.keys.create(tenant, scopes=["admin"]) + "\n")
