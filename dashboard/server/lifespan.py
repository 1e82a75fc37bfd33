"""Background tasks of the server: they keep a supervisor running for the first click, and collect garbage."""

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

_WAKE_EVERY_S = 2.0  # a killed supervisor is replaced within ten seconds
_COLLECT_EVERY_S = 60.0

logger = logging.getLogger("isoflop.dashboard")


@contextlib.asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    """Start the background tasks with the server and stop them with it.

    Runs survive a restart of the server, but not its end: see Client.wake.
    """
    root = default_root()
    print(
        sign_in.greeting(
            root, settings.load(root), *map(st.get_option, ("server.address", "server.port", "server.baseUrlPath"))
        ),
        flush=True,
    )
    tasks = [asyncio.create_task(_keep_supervisor()), asyncio.create_task(_collect_garbage())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _keep_supervisor() -> None:
    """A supervisor exits when it was not needed for a while; a running one starts a run within milliseconds."""
    while True:
        try:
            await asyncio.to_thread(lambda: Client(Store()).wake())
        except (EngineError, OSError) as error:
            logger.warning("no supervisor could be started: %s", error)
        await asyncio.sleep(_WAKE_EVERY_S)


async def _collect_garbage() -> None:
    """Streamlit's own collection after each script run is off, because it livelocks at 30 viewers; this replaces it."""
    while True:
        await asyncio.sleep(_COLLECT_EVERY_S)
        await asyncio.to_thread(gc.collect)
