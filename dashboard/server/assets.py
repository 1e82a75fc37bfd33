"""Scripts and styles of the live charts, served with long caching."""

from __future__ import annotations

import functools
import gzip
import hashlib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_FOLDER = Path(__file__).parents[1] / "assets"
_ASSETS = {
    "card.js": "text/javascript",
    "common.js": "text/javascript",
    "copy.js": "text/javascript",
    "inference.js": "text/javascript",
    "inference.css": "text/css",
    "lanes.js": "text/javascript",
    "live.js": "text/javascript",
    "live.css": "text/css",
    "monitor.js": "text/javascript",
    "monitor.css": "text/css",
    "race.js": "text/javascript",
    "race.css": "text/css",
    "scale.js": "text/javascript",
    "scale.css": "text/css",
    "inter.woff2": "font/woff2",
    "icon.svg": "image/svg+xml",
}
PLOTLY_VERSION = version("plotly")


@functools.cache
def _asset(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@functools.cache
def assets_version() -> str:
    """A hash of the components' files. It is part of their addresses, so no browser keeps an old file."""
    ours = b"".join(_asset(name) for name in _ASSETS if name.endswith((".js", ".css")))
    return hashlib.sha256(ours).hexdigest()[:12]


def get_asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:  # the name only selects; it never becomes a path
        return PlainTextResponse("There is no such file.", status_code=404)
    return Response(_asset(name), media_type=_ASSETS[name], headers=_caching(request))


@functools.cache
def _plotly(*, compressed: bool) -> bytes:
    """The plotly package's own plotly.min.js: the version that the figures are made for, without a network."""
    if compressed:
        return gzip.compress(_plotly(compressed=False), compresslevel=6, mtime=0)
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()


def get_plotly(request: Request) -> Response:
    headers = _caching(request) | {"Vary": "Accept-Encoding"}
    compressed = "gzip" in request.headers.get("accept-encoding", "")
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(_plotly(compressed=compressed), media_type="text/javascript", headers=headers)


def _caching(request: Request) -> dict[str, str]:
    """A file under an address with a version never changes; any other is fetched again after an hour."""
    forever = bool(request.query_params.get("v"))
    return {"Cache-Control": "public, max-age=31536000, immutable" if forever else "public, max-age=3600"}


ASSET_ROUTES = [Route("/assets/plotly.min.js", get_plotly), Route("/assets/{name}", get_asset)]
