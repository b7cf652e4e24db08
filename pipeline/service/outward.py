"""Sections of the configuration for what the service tells the outside: HTTP, webhook, spool folder."""

from __future__ import annotations

import os
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.section import Section, Text, key
from pipeline.service.urls import WebhookError, check_url

Events = Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]


class Http(Section):
    """Health, metrics and status over HTTP. Whoever reaches the address may read them; they name no slide."""

    host: Text = key("127.0.0.1", "Address to listen on. Other than loopback only behind a firewall or a proxy.")
    port: int = key(8750, "Port to listen on; 0: any that is free.", ge=0, le=65535)
    names: Annotated[tuple[Text, ...], Field(max_length=64)] = key(
        (),
        "Names of this machine under which it may be asked, beside localhost and the address; others are refused, so that "
        'no web page elsewhere can read it through a browser here. ["*"]: any.',
    )
    stuck_s: float = key(
        300.0,
        "With work that could be done and no result for so long, /progress says that the service is stuck, in seconds.",
        ge=10, le=86400,
    )  # fmt: skip


class ReviewPage(Section):
    """The pathologist's page over the results of all routes; the same options and refusals as `slidestream review` has."""

    enabled: bool = key(False, "Serve it. Without users or trusted_header everybody on this machine is one reviewer.")
    host: Text = key("127.0.0.1", "Address to listen on.")
    port: int = key(8017, "Port to listen on; 0: any that is free.", ge=0, le=65535)
    users: Text | None = key(None, "File of users with passwords and roles (slidestream user), an absolute path.")
    certificate: Text | None = key(None, "For TLS: the certificate and its chain, PEM, an absolute path.")
    certificate_key: Text | None = key(None, "For TLS: the certificate's key, PEM, an absolute path.")
    names: Annotated[tuple[Text, ...], Field(max_length=64)] = key(
        (), "Names under which the page is asked, beside localhost and the address."
    )
    proxies: Annotated[tuple[Text, ...], Field(max_length=64)] = key((), "Addresses of reverse proxies in front of it.")
    trusted_header: Text | None = key(None, "The proxy's header that names who is signed in; needs proxies.")
    default_role: Literal["viewer", "reviewer", "admin"] | None = key(
        None, "Role of users that the proxy names and the file does not; null: they are refused."
    )
    labels: Literal["nobody", "admin", "reviewer", "viewer"] = key(
        "nobody",
        "Who may see label and macro images of slides, which can name the patient: this role and those above it.",
    )
    insecure: bool = key(
        False, "Listen on other addresses also without users or TLS: then others can read all, and sign."
    )

    @field_validator("users", "certificate", "certificate_key")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not os.path.isabs(value):
            raise ValueError("must be an absolute path")
        return value


class WebhookTarget(Section):
    """Events as signed HTTPS requests (docs/operations.md says how they are checked)."""

    url: Text | None = key(None, "Where events are posted; https, or http to this machine. null: nowhere.")
    secret_file: Text | None = key(
        None, "File with the secret of the signatures: whsec_ and base64, or a line of at least 16 characters."
    )
    ca_file: Text | None = key(None, "File with the certificates (PEM) that are trusted; null: those of the system.")
    events: Events = key(
        (
            "slide.complete",
            "slide.partial",
            "slide.quarantined",
            "slide.deadline_at_risk",
            "arrival.*",
            "intake.*",
            "service.*",
        ),
        "Patterns of the events that are sent.",
    )
    timeout_s: float = key(10.0, "A try may take so long, in seconds.", ge=0.5, le=120)
    keep_h: float = key(72.0, "An event that could not be sent for so long is dropped, in hours.", ge=0.1, le=8760)

    @field_validator("url")
    @classmethod
    def _allowed(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                check_url(value)
        except WebhookError as error:
            raise ValueError(str(error).removeprefix("webhook.url: ")) from None
        return value

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.url is not None and self.secret_file is None:
            raise ValueError("url is given, but no secret_file: without a signature anybody could send such events")
        return self


class SpoolFolder(Section):
    """Events as JSON files in a folder that another program empties."""

    path: Text | None = key(None, "The folder, an absolute path; made where it is missing. null: none.")
    events: Events = key(("*",), "Patterns of the events that are written.")
    most: int = key(10_000, "With so many files in it, the folder is full and events wait.", ge=1, le=1_000_000)
    keep_h: float = key(720.0, "An event that could not be written for so long is dropped, in hours.", ge=0.1, le=8760)

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not os.path.isabs(value) or "\0" in value or ".." in value.split("/"):
            raise ValueError("must be an absolute path without ..")
        return os.path.normpath(value)
