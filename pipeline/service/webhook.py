"""Events as signed HTTPS requests, after https://www.standardwebhooks.com (its libraries check them):

    POST URL
    webhook-id: evt_...            the same for every try of an event
    webhook-timestamp: 1764000000  when this try was sent, in seconds since 1970
    webhook-signature: v1,<base64 of HMAC-SHA256(secret, "ID.TIMESTAMP.BODY")>

Who receives checks the signature over the body as it came, refuses timestamps more than five minutes off, and passes over ids
that it has had: so nothing can be changed, invented or played again. Redirects are not followed, and proxies are not used: an
event goes where the operator said, or nowhere.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pipeline.service.events import Undelivered, envelope, event_id
from pipeline.service.records import Told
from pipeline.service.urls import WebhookError, check_url

SECRET_PREFIX = "whsec_"
SECRET_BYTES = 16
_THIS_EVENT = {400, 413, 415, 422}  # the receiver does not want this one; everything else may pass


class Webhook:
    """A sink that posts to one URL."""

    name = "webhook"

    def __init__(self, url: str, secret: bytes, timeout_s: float = 10.0, ca_file: str | None = None) -> None:
        """`timeout_s` bounds a whole try. WebhookError: neither https nor this machine, or certificates cannot be read."""
        check_url(url)
        parts = urlsplit(url)
        self._host, self._port, self._secret, self._timeout_s = parts.hostname or "", parts.port, secret, timeout_s
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except (OSError, ssl.SSLError) as error:
                raise WebhookError(f"webhook.ca_file: {ca_file}: {error.strerror or error}") from error

    def send(self, event: Told) -> None:
        """One try. Undelivered for anything but an answer 200 to 299 within the time."""
        body, identity, now = envelope(event), event_id(event), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "slidestream",
            "webhook-id": identity,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._secret, identity, now, body),
            "connection": "close",
        }
        connection = self._connection()
        late = f"{self._host}: no answer within {self._timeout_s:g} s"
        with _Guard(connection, self._timeout_s) as guard:
            try:
                connection.request("POST", self._target, body, headers)
                response = connection.getresponse()
                status, again = response.status, response.getheader("retry-after")
            except (OSError, http.client.HTTPException) as error:
                slow = guard.over or isinstance(error, TimeoutError)
                raise Undelivered(late if slow else f"{self._host}: {_words(error)}") from error
        if guard.over:
            raise Undelivered(late)
        judge(self._host, status, again)

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)


def judge(host: str, status: int, retry_after: str | None = None) -> None:
    """What an answer means: nothing for 200 to 299, Undelivered for all else. `retry_after` in seconds, as the header."""
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Undelivered(f"{host}: answers with a redirect ({status}), which is not followed; correct webhook.url")
    pause = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdecimal() else None
    raise Undelivered(f"{host}: answers {status}", hopeless=status in _THIS_EVENT, pause_s=pause)


def signature(secret: bytes, identity: str, timestamp: int, body: bytes) -> str:
    """The header webhook-signature."""
    signed = f"{identity}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def read_secret(path: Path) -> bytes:
    """The secret in a file: whsec_ and base64, or any line of at least 16 characters. WebhookError where it is not there."""
    try:
        text = path.read_text("ascii").strip()
    except OSError as error:
        raise WebhookError(f"webhook.secret_file: {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise WebhookError(f"webhook.secret_file: {path}: holds something else than ASCII text") from None
    secret = text.encode()
    if text.startswith(SECRET_PREFIX):
        try:
            secret = base64.b64decode(text[len(SECRET_PREFIX) :], validate=True)
        except binascii.Error:
            raise WebhookError(f"webhook.secret_file: {path}: what follows {SECRET_PREFIX} is not base64") from None
    if len(secret) < SECRET_BYTES:
        raise WebhookError(f"webhook.secret_file: {path}: a secret has at least {SECRET_BYTES} bytes")
    return secret


class _Guard:
    """Ends a connection when its time is over, and closes it in any case.

    A socket's own timeout begins again with every byte: a receiver that sends a byte a second would hold us for ever.
    """

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection, self.over = connection, False
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._connection.close()

    def _cut(self) -> None:
        self.over = True
        if self._connection.sock is not None:
            # Not SSLSocket's own, which takes TLS from under the thread that reads. What has ended by itself is fine.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return text.splitlines()[0][:200]
