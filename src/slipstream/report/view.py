"""A local page over a folder of runs, which follows them while they are recorded."""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from slipstream.report.gallery import Gallery
from slipstream.report.page import asset, view_html
from slipstream.report.sections import QUESTIONS

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
INSTALL = "pip install 'slipstream[view]'"
_LIGHT = "run"  # the section that reads no weights, and does not wait for others
_ASSETS = {
    "plotly-cartesian.min.js": "text/javascript",
    "page.js": "text/javascript",
    "view.js": "text/javascript",
    "page.css": "text/css",
    "view.css": "text/css",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def view_app(gallery: Gallery) -> "Starlette":
    """Return the web application over a folder of runs.

    It only answers requests addressed to 127.0.0.1 or localhost, so that no web page can read it
    under another name (DNS rebinding). It writes nothing.

    Args:
        gallery: The folder.

    Returns:
        An application for any ASGI server.

    Raises:
        ModuleNotFoundError: If Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"The live view needs Starlette: {INSTALL}.") from error
    pages = _Pages(gallery)
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    routes = [
        Route("/", pages.index),
        Route("/runs", pages.runs),
        Route("/section/{key}", pages.section),
        Route("/assets/{name}", pages.asset),
    ]
    return Starlette(routes=routes, middleware=[hosts])


def serve(gallery: Gallery, *, port: int = 0, ready: Callable[[str], None] | None = None) -> None:
    """Serve the live view on this machine until it is interrupted.

    Args:
        gallery: The folder.
        port: A free port; 0 takes any.
        ready: Called with the address once it can be opened.

    Raises:
        ModuleNotFoundError: If Starlette or uvicorn is not installed.
        OSError: If the port is taken.
    """
    app = view_app(gallery)
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"The live view needs uvicorn: {INSTALL}.") from error
    with _listening(port) as listening:
        if ready is not None:
            ready(f"http://{HOST}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])


def _listening(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        if error.errno != errno.EADDRINUSE:
            raise
        text = f"Port {port} is taken: give another with --port, or --port 0 for any free one."
        raise OSError(text) from error
    found.listen(64)
    return found


class _Pages:
    """Answers requests; sections that read weights are computed one at a time, in a thread."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._heavy = asyncio.Lock()
        self._listing = asyncio.Lock()

    async def index(self, _: "Request") -> "Response":
        from starlette.responses import HTMLResponse

        return HTMLResponse(view_html(str(self._gallery.root)), headers=_HEADERS)

    async def asset(self, request: "Request") -> "Response":
        from starlette.responses import Response

        name = request.path_params["name"]
        if name not in _ASSETS:
            return Response("There is no such file.", 404, _HEADERS)
        return _tagged(request, asset(name), _ASSETS[name])

    async def runs(self, request: "Request") -> "Response":
        import json

        from starlette.concurrency import run_in_threadpool

        async with self._listing:
            listed = await run_in_threadpool(self._gallery.listed)
        text = json.dumps([asdict(one) for one in listed])
        return _tagged(request, text, "application/json")

    async def section(self, request: "Request") -> "Response":
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import Response

        key, ids = request.path_params["key"], request.query_params.getlist("run")
        if key not in QUESTIONS or not ids:
            return Response("There is no such section.", 404, _HEADERS)
        try:
            if key == _LIGHT:
                html = await run_in_threadpool(self._gallery.section, key, ids)
            else:
                async with self._heavy:
                    if await request.is_disconnected():
                        return Response(status_code=204)
                    html = await run_in_threadpool(self._gallery.section, key, ids)
        except KeyError as error:
            return Response(error.args[0], 404, _HEADERS, "text/plain")
        except (ValueError, OSError) as error:
            return Response(str(error), 409, _HEADERS, "text/plain")
        return _tagged(request, html, "text/html")


def _tagged(request: "Request", text: str, kind: str) -> "Response":
    """The text, or status 304 if the browser has it already."""
    from starlette.responses import Response

    tag = f'"{sha256(text.encode()).hexdigest()[:32]}"'
    headers: dict[str, Any] = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(text, headers=headers, media_type=kind)
