"""Events to a webhook and to a spool folder: real servers that fail, hang and redirect, a real ledger."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.service.events import LONGEST_PAUSE_S, Courier, Undelivered, envelope, event_id, pause_s
from pipeline.service.ledger import Ledger
from pipeline.service.outward import SpoolFolder, WebhookTarget
from pipeline.service.records import Told
from pipeline.service.spool import Spool
from pipeline.service.urls import WebhookError
from pipeline.service.webhook import Webhook, read_secret, signature
from tests.pipeline.service.ledgers import delivery

SECRET = b"0123456789abcdef-secret"


def told(number: int = 1, event: str = "slide.complete", at: float = 1000.0) -> Told:
    return Told(number, at, event, 7, {"slide": 7, "name": "Ä"})


class Receiver:
    """An HTTP server in a thread. `answers` says what it does, one a request, the last for ever: a status, a pair of status
    and headers, or a function of the handler."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.release = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                if callable(answer):
                    answer(self)
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook?a=1"

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*answers: object) -> Receiver:
        made.append(Receiver(*answers))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_sink("webhook")
        ledger.add_sink("spool")
        yield ledger


def deliver(ledger: Ledger, count: int, now: float | None = None) -> None:
    """So many events."""
    for number in range(count):
        ledger.deliver(delivery(f"S{number}"), time.time() if now is None else now)


# The request


def test_signature_is_that_of_standard_webhooks():
    """The example of the specification's own libraries comes out as there."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_request_can_be_checked_by_its_receiver(receive):
    """What arrives is signed over id, time and body; the time is that of the try."""
    receiver = receive(204)
    Webhook(receiver.url, SECRET).send(told())
    path, headers, body = receiver.requests[0]
    assert path == "/hook?a=1" and headers["content-type"] == "application/json"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    assert json.loads(body) == {
        "id": headers["webhook-id"],
        "type": "slide.complete",
        "timestamp": "1970-01-01T00:16:40.000Z",
        "data": {"slide": 7, "name": "Ä"},
    }


def test_ids_stay_and_differ():
    """The same event has the same id at every try; another event, and that of another ledger, has another."""
    assert event_id(told()) == event_id(told())
    assert len({event_id(told(number, at=at)) for number in (1, 2) for at in (1000.0, 1001.0)}) == 4


@pytest.mark.parametrize(("status", "hopeless"), [(500, False), (404, False), (401, False), (400, True), (422, True)])
def test_answers_that_are_no_success(receive, status, hopeless):
    """Only what the receiver calls wrong in itself is hopeless; a wrong address or key can be mended."""
    with pytest.raises(Undelivered, match=f"answers {status}") as caught:
        Webhook(receive(status).url, SECRET).send(told())
    assert caught.value.hopeless == hopeless


def test_redirects_are_not_followed(receive):
    """An event goes where the operator said, or nowhere."""
    other = receive(200)
    receiver = receive((307, {"location": other.url}))
    with pytest.raises(Undelivered, match="redirect"):
        Webhook(receiver.url, SECRET).send(told())
    assert not other.requests


def test_receiver_that_hangs(receive):
    """A receiver that takes the request and never answers costs the time of a try, no more."""

    def hang(handler: BaseHTTPRequestHandler) -> None:
        receiver.release.wait(30)

    receiver = receive(hang)
    with pytest.raises(Undelivered, match=r"no answer within 0\.5 s"):
        Webhook(receiver.url, SECRET, timeout_s=0.5).send(told())


def test_receiver_that_dribbles(receive):
    """One that sends a byte now and then costs no more: the bound is on the whole try."""

    def dribble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        while not receiver.release.wait(0.1):
            handler.wfile.write(b"y")
            handler.wfile.flush()

    receiver = receive(dribble)
    with pytest.raises(Undelivered, match=r"no answer within 0\.6 s"):
        Webhook(receiver.url, SECRET, timeout_s=0.6).send(told())


def test_nobody_listens(receive):
    """A receiver that is down is one line."""
    receiver = receive(200)
    url = receiver.url
    receiver.close()
    with pytest.raises(Undelivered, match="refused"):
        Webhook(url, SECRET).send(told())
    receiver.close = lambda: None


def test_nonsense_is_no_success(receive):
    """What does not speak HTTP has not taken the event."""
    receiver = receive(lambda handler: handler.wfile.write(b"hello\r\n\r\n"))
    with pytest.raises(Undelivered):
        Webhook(receiver.url, SECRET).send(told())


def test_certificate_must_be_trusted(receive, tmp_path):
    """Over TLS: an unknown certificate is refused, one in ca_file is accepted."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key],
        check=True,
        capture_output=True,
    )
    receiver = receive(200)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    url = receiver.url.replace("http://127.0.0.1", "https://localhost")
    with pytest.raises(Undelivered, match="certificate is not accepted"):
        Webhook(url, SECRET).send(told())
    Webhook(url, SECRET, ca_file=str(certificate)).send(told())
    assert len(receiver.requests) == 1


# The configuration


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://example.org", "https://me:pw@example.org", "https://", "https://a b", "x"]
)
def test_urls_that_are_refused(url):
    """Events can name patients: https, or this machine; no passwords in the file."""
    with pytest.raises(ValueError, match="url"):
        WebhookTarget(url=url, secret_file="/s")


def test_webhook_needs_a_secret():
    """A URL without a secret is refused; without a URL there is no webhook."""
    with pytest.raises(ValueError, match="secret_file"):
        WebhookTarget(url="https://example.org/x")
    assert WebhookTarget().url is None and SpoolFolder().path is None


def test_secret_files(tmp_path):
    """whsec_ and base64, or a plain line; too short, missing or broken ones are named."""
    path = tmp_path / "secret"
    path.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    assert read_secret(path) == base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    path.write_text("a plain line of text\n")
    assert read_secret(path) == b"a plain line of text"
    for text in ("short", "whsec_%%%", "ä" * 20):
        path.write_text(text)
        with pytest.raises(WebhookError, match="webhook.secret_file"):
            read_secret(path)
    with pytest.raises(WebhookError, match="No such file"):
        read_secret(tmp_path / "none")


def test_spool_folder_is_absolute():
    """A relative folder would depend on where the service was started."""
    with pytest.raises(ValueError, match="absolute"):
        SpoolFolder(path="events")


# The courier


class Confirmed(list):
    """What the supervisor was told; `deaf`: it does not listen."""

    deaf = False

    def __call__(self, sink: str, event: int) -> None:
        if self.deaf:
            raise ConnectionError("deaf")
        self.append((sink, event))


def test_delivers_in_order_and_confirms(ledger, receive):
    """All that waits is sent in the order of the events, and told once."""
    receiver, confirmed = receive(200), Confirmed()
    deliver(ledger, 3)
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), confirmed)
    courier.step(time.time())
    assert [json.loads(body)["data"]["name"] for _, _, body in receiver.requests] == ["S0", "S1", "S2"]
    assert confirmed == [("webhook", 3)]
    courier.step(time.time())
    assert len(receiver.requests) == 3 and len(confirmed) == 1


def test_a_failing_receiver_is_tried_again_later(ledger, receive):
    """Nothing is sent after one that failed; pauses grow; when it comes back, all arrive, once."""
    receiver, confirmed = receive(500, 503, 200), Confirmed()
    deliver(ledger, 2)
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), confirmed)
    first, second = courier.step(time.time()), courier.step(time.time())
    assert 0.8 <= first <= 1.0 and 1.6 <= second <= 2.0 and not confirmed
    courier.step(time.time())
    names = [json.loads(body)["data"]["name"] for _, _, body in receiver.requests]
    assert names == ["S0", "S0", "S0", "S1"] and confirmed == [("webhook", 2)]
    ids = [headers["webhook-id"] for _, headers, _ in receiver.requests]
    assert len(set(ids)) == 2


def test_pauses_are_bounded():
    """After any number of tries the pause is five minutes at most."""
    assert pause_s(1, 0.0) == 1.0 and pause_s(4, 0.0) == 8.0
    assert pause_s(10_000, 0.0) == LONGEST_PAUSE_S


def test_receiver_says_when_to_come_again(ledger, receive):
    """Retry-After is obeyed, within the bound."""
    receiver = receive((429, {"retry-after": "30"}), (429, {"retry-after": "999999"}))
    deliver(ledger, 1)
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), Confirmed())
    assert courier.step(time.time()) == 30.0
    assert courier.step(time.time()) == LONGEST_PAUSE_S


def test_an_event_that_is_refused_does_not_stop_the_others(ledger, receive):
    """After three refusals it is dropped, and the next one goes."""
    receiver, confirmed = receive(400, 400, 400, 200), Confirmed()
    deliver(ledger, 2)
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), confirmed)
    for _ in range(3):
        courier.step(time.time())
    assert json.loads(receiver.requests[-1][2])["data"]["name"] == "S1" and confirmed == [("webhook", 2)]


def test_old_events_are_dropped(ledger, receive):
    """What nobody took for too long is not sent any more."""
    receiver, confirmed = receive(200), Confirmed()
    deliver(ledger, 1, now=100.0)
    Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), confirmed, keep_s=50.0).step(151.0)
    assert not receiver.requests and confirmed == [("webhook", 1)]


def test_what_waits_is_bounded(ledger, receive):
    """With more events than allowed the oldest are dropped."""
    receiver = receive(200)
    deliver(ledger, 10)
    Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), Confirmed(), most=4).step(time.time())
    assert [json.loads(body)["data"]["name"] for _, _, body in receiver.requests] == ["S6", "S7", "S8", "S9"]


def test_only_wanted_events_are_sent(ledger, receive):
    """The others are passed over, and confirmed, so that they wait for nobody."""
    receiver, confirmed = receive(200), Confirmed()
    deliver(ledger, 2)
    ledger.cancel(1, time.time())
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), confirmed, wanted=("slide.cancel*",))
    courier.step(time.time())
    assert [json.loads(body)["type"] for _, _, body in receiver.requests] == ["slide.cancelled"]
    assert confirmed == [("webhook", 3)]


def test_deaf_supervisor_does_not_make_it_send_twice(ledger, receive):
    """What was sent is remembered until it can be told."""
    receiver, confirmed = receive(200), Confirmed()
    confirmed.deaf = True
    deliver(ledger, 1)
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), confirmed)
    courier.step(time.time())
    courier.step(time.time())
    confirmed.deaf = False
    courier.step(time.time())
    assert len(receiver.requests) == 1 and confirmed == [("webhook", 1)]


def test_thread_lives_on(ledger, receive):
    """In its thread it delivers what comes while it runs, and ends when told."""
    receiver, stop = receive(500, 200), threading.Event()
    courier = Courier(ledger_path(ledger), Webhook(receiver.url, SECRET), Confirmed())
    thread = threading.Thread(target=courier.run, args=(stop,))
    thread.start()
    deliver(ledger, 1)
    end = time.monotonic() + 30
    while len(receiver.requests) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    stop.set()
    thread.join(30)
    assert len(receiver.requests) == 2 and not thread.is_alive()


# The spool folder


def test_spool_writes_one_file_an_event(tmp_path):
    """Names rise with the events; the content is that of the webhook; nothing else lies there."""
    folder = tmp_path / "spool"
    for number in (2, 10):
        Spool(folder).send(told(number, "slide.complete"))
    names = ["000000000002-slide.complete.json", "000000000010-slide.complete.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / names[0]).read_bytes() == envelope(told(2))


def test_spool_names_stay_in_the_folder(tmp_path):
    """Whatever an event is called, its file lies in the folder."""
    Spool(tmp_path / "spool").send(told(1, "../../x/\0y"))
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "spool"]


def test_full_spool_makes_events_wait(tmp_path):
    """Nothing that was not collected is overwritten or dropped."""
    spool = Spool(tmp_path, most=2)
    for number in (1, 2):
        spool.send(told(number))
    with pytest.raises(Undelivered, match="2 events lie there"):
        spool.send(told(3))
    next(tmp_path.iterdir()).unlink()
    spool.send(told(3))


def test_spool_that_cannot_be_written(tmp_path):
    """A folder that is a file is one line, and tried again."""
    (tmp_path / "spool").write_text("")
    with pytest.raises(Undelivered, match="spool"):
        Spool(tmp_path / "spool").send(told())


def ledger_path(ledger: Ledger):
    return ledger._writer.path
