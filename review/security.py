"""What holds for every answer of the review page: headers, errors that tell no more than they must, and where it may listen."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import log as logs
from review.errors import AuditError, Refused, ReviewError

# OpenSeadragon draws tiles from blobs; nothing else but this server is ever asked, and nothing inline is run.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=(), "
    "clipboard-write=(self), fullscreen=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# A year; said over TLS only, where alone it counts (RFC 6797, 7.2).
_STRICT_TRANSPORT = "max-age=31536000"

WORDS = {
    400: ("bad_request", "this request cannot be understood"),
    401: ("signed_out", "sign in first"),
    403: ("forbidden", "you may not do this"),
    404: ("not_found", "there is nothing here"),
    405: ("method", "this cannot be done here"),
    413: ("too_large", "the request is too large"),
    500: ("fault", "a fault of the server; its log says more"),
}


class SecurityHeaders:
    """Adds the headers to every answer that does not have its own, errors included; answers of the API are never stored."""

    def __init__(self, app: ASGIApp, tls: bool = False) -> None:
        self._app = app
        self._headers = HEADERS | ({"strict-transport-security": _STRICT_TRANSPORT} if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        api = scope["path"].startswith("/api/")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store" if api else "no-cache")
            await send(message)

        await self._app(scope, receive, with_headers)


def error_handlers() -> dict[Any, Callable[[Request, Exception], Any]]:
    """For Starlette(exception_handlers=...): every error is {"error", "code"}, and none says what went wrong inside."""

    async def refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, Refused):
            raise error
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return JSONResponse(error.body(), error.status, headers)

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        code, text = WORDS.get(status, ("error", "this cannot be done"))
        headers = error.headers if isinstance(error, HTTPException) else None
        return JSONResponse({"error": text, "code": code}, status, headers)

    async def unkept(request: Request, error: Exception) -> Response:
        """The log of reviews cannot be used; what exactly is wrong is the operator's to know."""
        logs.get_logger().error("the log of reviews cannot be used", reason=str(error))
        text = "reviews cannot be kept now; tell whoever runs this page"
        return JSONResponse({"error": text, "code": "log_broken"}, 503)

    return {Refused: refused, AuditError: unkept, HTTPException: http, 500: http}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where and how the page would be served. `trusted`: behind a proxy whose header names the user."""

    host: str
    users: bool
    tls: bool
    trusted: bool = False
    override: bool = False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_listening(how: Listening) -> None:
    """ReviewError where the page would be open to others without users, or its passwords and slides to the network."""
    if is_loopback(how.host) or how.override:
        return
    if not how.users and not how.trusted:
        raise ReviewError(f"--host {how.host}: others could reach the page, and there are no users; give --users FILE")
    if not how.tls:
        raise ReviewError(
            f"--host {how.host}: passwords and slides would cross the network in the clear; give --certificate and --key, "
            "or listen on 127.0.0.1 behind a proxy that does TLS"
        )


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(names: Sequence[str]) -> tuple[Network, ...]:
    """Addresses ("10.0.0.7") and networks ("10.0.0.0/24") of proxies. ReviewError for anything else, and for all the world."""
    found = []
    for name in names:
        try:
            network = ipaddress.ip_network(name, strict=True)
        except ValueError as error:
            raise ReviewError(f"proxy {name!r}: is no address or network ({error})") from error
        if network.prefixlen == 0:
            raise ReviewError(f"proxy {name!r}: that is every machine there is; name the proxy's own address")
        found.append(network)
    return tuple(found)


def peer(request: Request) -> str:
    """The address at the other end of the connection; no header can change it."""
    return request.client.host if request.client else ""


def among(address: str, proxies: Sequence[Network]) -> bool:
    """Whether an address is one of the proxies'."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in proxies if network.version == (mapped or parsed).version)


def asker(request: Request, proxies: Sequence[Network]) -> str:
    """The address that asks: behind a known proxy the last one in X-Forwarded-For that is no proxy, else the peer."""
    address = peer(request)
    hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
    while among(address, proxies) and hops:
        hop = hops.pop().strip()
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            break
        address = hop
    return address


def house(address: str) -> str:
    """What one asker has at least: an IPv4 address, or the /64 of an IPv6 address, within which one may change at will."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a changing request comes from this page, as far as the browser tells (Sec-Fetch-Site, Origin)."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")
