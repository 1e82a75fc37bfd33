"""What runs beside the pages while the server is up: a supervisor is kept warm for the first click."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import streamlit as st

from dashboard.server import sign_in
from engine.access import settings
from engine.common.errors import EngineError
from engine.runtime.client import Client
from engine.store.store import Store, default_root

_RING_EVERY_S = 2.0  # should it be killed, its runs are looked after again within ten seconds
_COLLECT_EVERY_S = 60.0

logger = logging.getLogger("isoflop.dashboard")


@contextlib.asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    """The server's own tasks, from its start to its end. Runs outlive a restart of it, not its end: see Client.wake."""
    root = default_root()
    print(
        sign_in.greeting(
            root, settings.load(root), *map(st.get_option, ("server.address", "server.port", "server.baseUrlPath"))
        ),
        flush=True,
    )
    tasks = [asyncio.create_task(_keep_a_supervisor()), asyncio.create_task(_collect_garbage())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _keep_a_supervisor() -> None:
    """A supervisor leaves when nobody rang for a while; one that is there answers a click in milliseconds."""
    while True:
        try:
            await asyncio.to_thread(lambda: Client(Store()).wake())
        except (EngineError, OSError) as error:
            logger.warning("no supervisor could be started: %s", error)
        await asyncio.sleep(_RING_EVERY_S)


async def _collect_garbage() -> None:
    """Streamlit's own collection after each script run is off (it livelocks at 30 viewers); this takes its place."""
    while True:
        await asyncio.sleep(_COLLECT_EVERY_S)
        await asyncio.to_thread(gc.collect)
