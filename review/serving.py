"""How the page is served: where it listens, under which names, with TLS or without, and who is let in.

`slidestream review` and the service (`review.served`) have the same options; each says what they are called there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from pipeline.service.web import listen, server
from review.errors import ReviewError
from review.guard import Guard, implicit, password_users, trusted_header
from review.security import Listening, check_listening

CONNECTIONS = 256
NICE = 10  # readers and the CPU's inference are at 5
OOM_SCORE = 800  # of 1000: the kernel's first choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The options, as `slidestream review --help` explains them."""

    host: str
    port: int
    users: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    names: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    trusted_header: str | None = None
    default_role: str | None = None
    insecure: bool = False

    @property
    def tls(self) -> bool:
        return self.certificate is not None

    @property
    def implicit(self) -> bool:
        """Whether nobody signs in."""
        return self.users is None and self.trusted_header is None

    def check(self) -> None:
        """ReviewError where the page would be open to others, or TLS cannot be had as asked."""
        if (self.certificate is None) != (self.key is None):
            raise ReviewError("--certificate and --key: TLS needs both")
        if self.certificate is not None and self.key is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
            except (OSError, ssl.SSLError) as error:
                raise ReviewError(
                    f"--certificate {self.certificate}, --key {self.key}: cannot be used ({error})"
                ) from error
        check_listening(
            Listening(
                host=self.host,
                users=self.users is not None,
                tls=self.tls,
                trusted=self.trusted_header is not None,
                override=self.insecure,
            )
        )

    def guard(self, sessions: Path, somebody: str) -> Guard:
        """Who is let in. `sessions`: the file in which sessions outlive a restart; `somebody`: who everybody is where nobody
        signs in. ReviewError where that cannot be."""
        if self.trusted_header is not None:
            return trusted_header(self.trusted_header, self.proxies, self.users, self.default_role)
        if self.users is not None:
            return password_users(self.users, sessions, tls=self.tls, proxies=self.proxies)
        return implicit(somebody)

    def listen(self) -> socket.socket:
        """The listening socket. ReviewError where the address cannot be had."""
        try:
            return listen(self.host, self.port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ReviewError(f"--host {self.host} --port {self.port}: {reason}; name another") from error

    def address(self, listening: socket.socket) -> str:
        """For a browser."""
        host, port = listening.getsockname()[:2]
        return f"http{'s' if self.tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/"

    def config(self, app: ASGIApp, **own: object) -> uvicorn.Config:
        """For uvicorn."""
        return server(
            app,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            ssl_certfile=self.certificate,
            ssl_keyfile=self.key,
            **own,
        )


def names(host: str, more: tuple[str, ...] | list[str]) -> list[str]:
    """The names under which the page may be asked: others would be other sites' (DNS rebinding)."""
    own = [] if host in ("0.0.0.0", "::") else [host]  # that is no name anybody asks under
    every = ("localhost", "127.0.0.1", "::1", *own, *more)
    return [f"[{name}]" if ":" in name else name for name in every]


def give_way() -> None:
    """Others first: for the cores, and when memory is short."""
    with contextlib.suppress(OSError):
        os.nice(NICE - os.nice(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
