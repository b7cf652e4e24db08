"""Where events may be posted. Light, as the configuration is read with it."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class WebhookError(Exception):
    """The webhook cannot be used as configured. One line, naming the key and what to do."""


def check_url(url: str) -> None:
    """WebhookError unless events may go there: https, or http within this machine; no password in it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise WebhookError(f"webhook.url: {error}") from error
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise WebhookError("webhook.url: must be like https://host/path")
    if parts.username is not None:
        raise WebhookError("webhook.url: must not hold a user name or password; the signature says who sends")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
        raise WebhookError("webhook.url: must be https (http only to this machine): events can name patients")
