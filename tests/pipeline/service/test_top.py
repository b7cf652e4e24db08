"""`slidestream top`: the page on a terminal, and the lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from pipeline.service.recent import Recent
from pipeline.service.top import panel, plain, watch

STAGE = {"kind": "reader", "workers": 12, "busy": 9.0, "waiting_input": 1.0, "waiting_room": 0.0, "restarts": 2}
RUN = {
    "patches_inferred": 100,
    "patches_failed": 0,
    "stages": [STAGE],
    "slots": {"free": 7, "ready": 1},
    "active": [["S26-1", 50, 200], ["two\nlines", 0, 0]],
    "telemetry": {
        "inference-0": {"batches": 4, "fill": 0.93, "batch_ms_p50": 6.5, "gpu_mib": 2048.0, "gpu_watts": 350.0}
    },
    "lanes": {"tumour": {"up": False, "slides": 3, "restarts": 1, "problem": "no engine"}},
}
ANSWER = {"lines": ["up 0:01:00; 2 running", "held: folder:/mnt since 0:10: gone"], "run": RUN}


def page(answer: dict) -> str:
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=False).print(panel(answer, Recent()))
    return out.getvalue()


def test_the_page_has_slides_stages_and_gpus():
    """What the service says in words, each stage, each GPU, each slide with its bar; no name breaks a line."""
    text = page(ANSWER)
    assert "2 running" in text and "held: folder:/mnt" in text
    assert "slide readers" in text and "90 %" in text and "slots: 7 free, 1 ready" in text
    assert "full 93 %" in text and "2,048 MiB" in text and "350 W" in text
    assert "S26-1" in text and "25 %" in text and "50 of 200" in text and "'two\\nlines'" in text


def test_a_service_between_two_starts_is_no_end_of_watching():
    """Only what is known is shown."""
    assert "no service" in page({"lines": ["no service is under way"], "run": {}})


def test_elsewhere_than_on_a_terminal_it_writes_lines():
    """One look, where one is asked for."""
    out = io.StringIO()
    assert watch(lambda: ANSWER, 1.0, True, out) == 0
    assert out.getvalue().splitlines()[1:] == plain(ANSWER, Recent())[1:]
    assert "slide readers: 12 workers, busy 90 %" in out.getvalue() and "lane tumour: down, 3 slides" in out.getvalue()
