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
_TYPES = {".js": "text/javascript", ".css": "text/css", ".woff2": "font/woff2", ".svg": "image/svg+xml"}
_ASSETS = (
    *("card.js", "common.js", "copy.js", "live.js", "live.css", "scale.js", "scale.css"),
    *("inference.js", "inference_charts.js", "inference_picker.js", "inference.css"),
    *("monitor.js", "monitor_card.js", "monitor_group.js", "monitor.css"),
    *("lanes.js", "race.js", "race_card.js", "race_rows.js", "race.css"),
    *("inter.woff2", "icon.svg"),
)
PLOTLY_VERSION = version("plotly")


@functools.cache
def _asset(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@functools.cache
def assets_version() -> str:
    """A hash of the components' files. It is part of their addresses, so no browser uses an old file."""
    ours = b"".join(_asset(name) for name in _ASSETS if name.endswith((".js", ".css")))
    return hashlib.sha256(ours).hexdigest()[:12]


def get_asset(request: Request) -> Response:
    """GET /assets/NAME: one of our own files; 404 for any other name."""
    name = request.path_params["name"]
    if name not in _ASSETS:  # the name only selects; it never becomes a path
        return PlainTextResponse("There is no such file.", status_code=404)
    return Response(_asset(name), media_type=_TYPES[Path(name).suffix], headers=_caching(request))


@functools.cache
def _plotly(*, compressed: bool) -> bytes:
    """The plotly.min.js of the installed plotly package, so its version fits the figures and no network is needed."""
    if compressed:
        return gzip.compress(_plotly(compressed=False), compresslevel=6, mtime=0)
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()


def get_plotly(request: Request) -> Response:
    """GET /assets/plotly.min.js, compressed if the browser accepts gzip."""
    headers = _caching(request) | {"Vary": "Accept-Encoding"}
    compressed = "gzip" in request.headers.get("accept-encoding", "")
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(_plotly(compressed=compressed), media_type="text/javascript", headers=headers)


def _caching(request: Request) -> dict[str, str]:
    """Cache a file for a year if its address has a version, otherwise for an hour."""
    forever = bool(request.query_params.get("v"))
    return {"Cache-Control": "public, max-age=31536000, immutable" if forever else "public, max-age=3600"}


ASSET_ROUTES = [Route("/assets/plotly.min.js", get_plotly), Route("/assets/{name}", get_asset)]
