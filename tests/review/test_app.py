"""The page over real results: what its routes show, to whom, and that no request makes them fail."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from starlette.routing import Route

from review import guard as guards
from review import openapi, users
from review.app import routes
from review.catalogue import key_of
from tests.end_to_end.conftest import start  # noqa: F401 (a fixture)
from tests.review.conftest import Results
from tests.review.page import PASSWORD
from tests.review.reading_page import Events, Heat, Served, serve, until

WHOLE, URGENT, TORN, TEXT = "ward 3/Präparat", "ward 3/frozen", "torn", "text"


@pytest.fixture(scope="module")
def served(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(results.out, tmp_path_factory.mktemp("log"), results.slides) as page:
        yield page


def ids(served: Served, query: str) -> list[str]:
    return [row["id"] for row in served.json(f"/api/worklist?{query}")["slides"]]


# ------------------------------------------------------------ worklist


def test_urgent_slides_come_first_then_the_likeliest(served):
    """Those without a score last."""
    rows = served.json("/api/worklist")["slides"]
    assert rows[0]["id"] == URGENT and rows[-1]["id"] == TEXT
    scores = [row["score"] for row in rows[1:-1]]
    assert scores == sorted(scores, reverse=True)
    assert rows[0]["review"] == {"state": "new", "reviewer": None, "open_regions": 0} and rows[0]["others"] == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=partial", {TORN}),
        ("urgency=stat", {URGENT}),
        ("q=PR%C3%84PARAT", {WHOLE}),
        ("q=pra%CC%88parat", {WHOLE}),
        ("q=ward&state=complete", {WHOLE, URGENT}),
        ("q=nothing", set()),
        ("reviewer=anna", set()),
    ],
)
def test_filters(served, query, expected):
    """By state, class, and the id without case and however its letters are written."""
    assert set(ids(served, query)) == expected
    assert served.json(f"/api/worklist?{query}")["total"] == len(expected)


def test_sorting_and_pages(served):
    """Both ways; what has no value there comes last in both."""
    assert ids(served, "sort=id") == sorted([WHOLE, URGENT, TORN, TEXT], key=str.casefold)
    up, down = (ids(served, f"sort=score&order={order}") for order in ("asc", "desc"))
    assert up[-1] == down[-1] == TEXT and up[:-1] == down[-2::-1]
    assert [*ids(served, "sort=id&limit=2"), *ids(served, "sort=id&limit=2&offset=2")] == ids(served, "sort=id")
    assert served.json("/api/worklist?limit=0") == {"total": 4, "slides": []}


def test_reviews_stand_in_the_worklist(served):
    """With the reviewer, to be filtered and sorted by."""
    served.browser.start()
    assert served.browser.act(key_of(TORN), 0, "open").status == 200
    row = served.json("/api/worklist?q=torn")["slides"][0]
    assert row["review"] == {"state": "in_review", "reviewer": "tester", "open_regions": 0}
    assert ids(served, "reviewer=TEST") == [TORN] and ids(served, "sort=review&order=desc")[0] == TORN
    assert ids(served, "review=in_review") == [TORN] and ids(served, "review=signed") == []
    assert TORN not in ids(served, "review=new") and len(ids(served, "review=unsigned")) == 4


# ------------------------------------------------------------ one slide


def test_a_slide_with_all_that_the_viewer_needs(served, results):
    """Levels, grid, classes, model, engine and review."""
    slide = served.json(served.slide(WHOLE))
    assert (slide["width"], slide["height"], slide["mpp"], slide["tiles"]) == (3000, 2000, 0.5, "passthrough")
    assert slide["levels"][0] == {"width": 3000, "height": 2000, "tile": 256, "downsample": 1.0, "passthrough": True}
    summary = json.loads((results.out / "slides" / f"{WHOLE}.json").read_text())
    assert slide["grid"] == {name: summary["reading"][name] for name in slide["grid"]}
    assert slide["model"] == summary["model"] and slide["engine"]["engine"] == "onnx"
    assert slide["classes"] == ["normal", "tumour"] and slide["heatmap_class"] == "tumour"
    assert slide["review"]["state"] == "new" and slide["problem"] is None and slide["labels"] == []


def test_a_slide_that_cannot_be_opened_says_so(served):
    """The page shows its reason instead of pictures."""
    slide = served.json(served.slide(TEXT))
    assert slide["levels"] == [] and slide["problem"]["code"] == "slide_unreadable" and slide["grid"] is None
    assert served.get(served.slide(TEXT, "/overview.jpg")).status == 422
    assert len(Heat.of(served.get(served.slide(TEXT, "/heat")).body).states) == 0
    assert served.json(served.slide(TEXT, "/regions")) == {"total": 0, "regions": []}


def test_tiles_and_pictures(served):
    """JPEGs of the right sizes; the browser asks again with a tag and is told that nothing changed."""
    for rest, size in (
        ("/tile/0/2_1.jpg", (256, 256)),
        ("/tile/1/0_0.jpg", (256, 256)),
        ("/overview.jpg", (1024, 682)),
    ):
        answer = served.get(served.slide(WHOLE, rest))
        assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.body)).size == size
        assert "no-store" not in answer.headers["cache-control"] and "private" in answer.headers["cache-control"]
        again = served.get(served.slide(WHOLE, rest), if_none_match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
    region = served.get(served.slide(WHOLE, "/region.jpg?x=-50&y=100&w=400&h=200&px=128"))
    assert Image.open(io.BytesIO(region.body)).size == (128, 64)


def test_a_torn_tile_is_hatched_and_not_kept(served):
    """With a header that says why; made levels show it, too."""
    answers = [served.get(served.slide(TORN, f"/tile/0/{column}_1.jpg")) for column in (1, 2, 3)]
    problems = [answer.headers.get("x-problem") for answer in answers]
    assert any(problems) and not all(problems)
    for answer, problem in zip(answers, problems, strict=True):
        assert answer.status == 200 and ("no-store" in answer.headers["cache-control"]) is bool(problem)


def test_the_heatmap_is_the_result(served, results):
    """Every patch of the slide's Parquet file; failed ones as failed."""
    import pandas as pd

    for name in (WHOLE, TORN):
        heat = Heat.of(served.get(served.slide(name, "/heat?from=0")).body).by_place()
        table = pd.read_parquet(results.out / "model-outputs-parquet" / f"{name}.parquet")
        expected = {
            (row.column, row.row): (1, (int(row.prob_normal * 255 + 0.5), int(row.prob_tumour * 255 + 0.5)))
            if row.state == "inferred"
            else (2, (0, 0))
            for row in table.itertuples()
        }
        assert heat == expected
    assert 2 in {state for state, _ in heat.values()}


def test_a_patch_under_the_pointer(served, results):
    """Its probabilities, or why it has none; with model and engine."""
    heat = Heat.of(served.get(served.slide(TORN, "/heat")).body).by_place()
    column, row = next(place for place, (state, _) in heat.items() if state == 2)
    failed = served.json(served.slide(TORN, f"/patch?column={column}&row={row}"))
    assert failed["state"] == "failed" and failed["reason"] and failed["probabilities"] == {}
    column, row = next(place for place, (state, _) in heat.items() if state == 1)
    good = served.json(served.slide(TORN, f"/patch?column={column}&row={row}"))
    assert (good["state"], good["model"], good["engine"]) == ("inferred", "tiny", "onnx")
    assert round(good["probabilities"]["tumour"] * 255) == pytest.approx(heat[column, row][1][1], abs=1)
    assert served.json(served.slide(TORN, "/patch?column=9999&row=0"))["state"] is None


def test_regions_follow_the_threshold(served):
    """What is over the higher one is over the lower one; small ones can be left out; ids are the same at each asking."""
    tables = served.catalogue.patches(key_of(WHOLE))
    high, low = np.quantile(tables.probabilities[:, 1], (0.9, 0.5)).tolist()
    few, many = (served.json(served.slide(WHOLE, f"/regions?class=tumour&threshold={t}")) for t in (high, low))
    inside = {t: int((tables.probabilities[:, 1] >= np.float32(t)).sum()) for t in (high, low)}
    assert sum(region["patches"] for region in few["regions"]) == inside[high]
    assert sum(region["patches"] for region in many["regions"]) == inside[low]
    assert few["regions"] == served.json(served.slide(WHOLE, f"/regions?threshold={high}"))["regions"]
    areas = sorted(region["area_um2"] for region in few["regions"])
    least = areas[len(areas) // 2]
    kept = served.json(served.slide(WHOLE, f"/regions?threshold={high}&min_um2={least}"))["regions"]
    assert [region["area_um2"] >= least for region in kept] == [True] * len(kept) and len(kept) < len(areas)
    assert [region["rank"] for region in few["regions"]] == list(range(1, len(areas) + 1))


def test_a_region_that_was_found_can_be_judged(served):
    """The acts know the regions by the same ids."""
    served.browser.start()
    key = key_of(URGENT)
    revision = served.browser.act(key, 0, "open").json["revision"]
    region = served.json(served.slide(URGENT, "/regions?threshold=0.1"))["regions"][0]
    chosen = served.browser.act(key, revision, "settings", **{"class": "tumour", "threshold": 0.1, "min_um2": 0})
    after = served.browser.act(key, chosen.json["revision"], "verdict", finding=region["id"], verdict="accepted")
    assert after.status == 200, after.body
    (finding,) = after.json["findings"]
    assert finding["area_um2"] == pytest.approx(region["area_um2"])
    assert served.get(served.slide(URGENT, "/export/geojson")).status == 200


def test_the_operations_page_shows_the_last_run(served, results):
    """Its figures and what failed, in words."""
    figures = served.json("/api/operations")
    record = json.loads((results.out / "run.json").read_text())
    assert figures["source"] == "run" and figures["bottleneck"] == record["bottleneck"] and not figures["live"]
    assert {failure["slide"] for failure in figures["failures"]} == {TORN, TEXT}
    assert all(failure["reason"] for failure in figures["failures"])


def test_real_slides(tmp_path, data_dir, results):
    """An Aperio scan and a Hamamatsu one, read by a run, looked at."""
    from tests.end_to_end import runs

    folder = data_dir / "slides"
    inputs = [folder / "CMU-1-Small-Region.svs", folder / "fluorescence-387.ndpi"]
    run = runs.start(inputs, tmp_path / "out", results.model)
    assert run.finish().code == 0
    run.destroy()
    with serve(tmp_path / "out", tmp_path, folder) as page:
        for name, tiles, tile in (("CMU-1-Small-Region", "passthrough", 240), ("fluorescence-387", "rendered", 256)):
            slide = page.json(page.slide(name))
            assert slide["tiles"] == tiles and slide["levels"][0]["tile"] == tile and slide["problem"] is None
            for number, level in enumerate(slide["levels"]):
                last = -(-level["width"] // level["tile"]) - 1, -(-level["height"] // level["tile"]) - 1
                for column, row in ((0, 0), last):
                    answer = page.get(page.slide(name, f"/tile/{number}/{column}_{row}.jpg"))
                    assert answer.status == 200 and "x-problem" not in answer.headers
            heat = Heat.of(page.get(page.slide(name, "/heat")).body)
            assert len(heat.states) == slide["patches"]["planned"]


# ------------------------------------------------------------ live


def test_a_slide_grows_while_it_is_looked_at(tmp_path, results, start):  # noqa: F811
    """Events tell of it, increments add up to the whole, and the end brings the same as the result."""
    source = results.slides / "ward 3" / "frozen.tif"
    run = start([source], tmp_path / "out", results.model, sabotage={"inference": {"slow_s": 0.02}})
    run.at_work()
    with serve(tmp_path / "out", tmp_path) as page:
        events = Events(page.browser.port, f"/api/events?slide={key_of('frozen')}")
        row = page.json("/api/worklist")["slides"][0]
        assert row["state"] == "running" and row["others"] == []
        first = Heat.of(page.get(page.slide("frozen", "/heat")).body)
        assert 0 in first.states and len(first.states) == row["patches"]["planned"]
        seen, following, steps = first.by_place(), first.following, 0
        assert page.json("/api/operations")["source"] == "service"
        while page.json(page.slide("frozen"))["state"] == "running":
            more = Heat.of(page.get(page.slide("frozen", f"/heat?from={following}")).body)
            steps += 0 < len(more.states) < len(first.states)
            seen |= more.by_place()
            following = more.following
        assert run.finish().code == 0
        until(lambda: page.json(page.slide("frozen"))["state"] == "complete")
        last = Heat.of(page.get(page.slide("frozen", f"/heat?from={following}")).body)
        assert seen | last.by_place() == Heat.of(page.get(page.slide("frozen", "/heat")).body).by_place()
        assert steps >= 2 and len(events.of("slide")) >= 2 and events.of("presence")[0]["users"] == ["tester"]
        events.close()


def test_reviews_are_told_to_all_who_listen(served):
    """With the revision that there is now."""
    events = Events(served.browser.port)
    until(lambda: served.page.live._listeners)
    served.browser.start()
    document = served.json(served.slide(WHOLE, "/review"))
    after = served.browser.act(key_of(WHOLE), document["revision"], "open").json
    found = until(lambda: events.of("review"))
    assert found[-1] == {"type": "review", "key": key_of(WHOLE), "revision": after["revision"]}
    events.close()


# ------------------------------------------------------------ who may, and what cannot be


def addresses() -> list[str]:
    """Every address of the API that only shows, with a real slide."""
    found = []
    for path, methods in openapi.paths().items():
        values = {"key": key_of(WHOLE), "level": "0", "column": "0", "row": "0", "form": "csv"}
        if "get" in methods and path not in ("/api/session",):
            found.append(path.format(**values))
    return found


def test_nothing_is_shown_to_who_is_not_signed_in(results, tmp_path):
    """Whatever is asked for; a viewer then sees it."""
    path = tmp_path / "users.json"
    users.add_user(path, "vera", "viewer", PASSWORD)
    with serve(results.out, tmp_path, guard=guards.password_users(path, None, tls=False)) as page:
        every = addresses()
        assert len(every) > 10
        for address in every:
            answer = page.get(address)
            assert (answer.status, answer.json["code"]) == (401, "signed_out"), address
        assert page.get("/").status == 200
        assert page.browser.sign_in("vera").status == 200
        for address in every:
            if not address.endswith(("/events", "/region.jpg", "/patch")):
                assert page.get(address).status == 200, address
        assert page.browser.act(key_of(WHOLE), 0, "open").json["code"] == "role"


def test_every_route_is_in_the_document(served):
    """And nothing else: what is not documented is not there, what is documented is."""
    documented = {
        (re.sub(r"\{column\}_\{row\}", "{place}", path), method.upper())
        for path, methods in served.json("/api/openapi.json")["paths"].items()
        for method in methods
    }
    there = {
        (route.path, method)
        for route in routes(served.page)
        if isinstance(route, Route)
        for method in route.methods - {"HEAD"}
    }
    assert there == documented


@pytest.mark.parametrize(
    "path",
    [
        "/api/slides/..%2f..%2fetc%2fpasswd", "/api/slides/0123456789abcdef0123", "/api/slides/%00", "/api/slides/" + "a" * 3000,
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fpyproject.toml", "/static//etc/passwd",
        "/api/slides/KEY/tile/0/0_0.png", "/api/slides/KEY/tile/99/0_0.jpg", "/api/slides/KEY/tile/0/99999999999999_0.jpg",
        "/api/slides/KEY/tile/0/" + "9" * 5000 + "_0.jpg", "/api/slides/KEY/tile/-1/0_0.jpg", "/api/slides/KEY/label.jpg",
        "/api/slides/KEY/macro.jpg", "/api/slides/KEY/tile/macro/0_0.jpg",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(served, path):
    """No path leads out; no label or macro image comes; nothing is told of the inside."""
    answer = served.get(path.replace("KEY", key_of(WHOLE)))
    assert answer.status == 404
    assert b"Traceback" not in answer.body and str(Path.cwd()).encode() not in answer.body


@pytest.mark.parametrize(
    "query",
    [
        "worklist?limit=501", "worklist?limit=-1", "worklist?offset=x", "worklist?sort=path", "worklist?order=up", "worklist?review=done",
        "worklist?state=done", "slides/KEY/heat?from=-1", "slides/KEY/heat?from=4294967296", "slides/KEY/patch?column=1",
        "slides/KEY/regions?threshold=nan", "slides/KEY/regions?threshold=1.1", "slides/KEY/regions?class=cat",
        "slides/KEY/regions?min_um2=-1", "slides/KEY/regions?min_um2=inf", "slides/KEY/region.jpg?x=0&y=0&w=0&h=1",
        "slides/KEY/region.jpg?x=0&y=0&w=10&h=10&px=1025", "slides/KEY/region.jpg?x=9000&y=0&w=10&h=10",
        "slides/KEY/region.jpg?x=0&y=0&w=9999999&h=10", "slides/KEY/tile/0/0_0.jpg?icc=2", "worklist?offset=٣",
    ],
)  # fmt: skip
def test_input_that_cannot_be_right_is_refused(served, query):
    """With one line that names it."""
    answer = served.get("/api/" + query.replace("KEY", key_of(WHOLE)).replace("٣", "%D9%A3"))
    assert answer.status == 422 and answer.json["code"] == "bad_input" and answer.json["error"]


_VALUES = st.one_of(st.integers(-(2**70), 2**70).map(str), st.floats().map(str), st.text(max_size=20))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_makes_the_server_fail(served, data):
    """Of any address with any parameters: an answer, or one line of what is wrong with it."""
    from urllib.parse import quote, urlencode

    path, methods = data.draw(st.sampled_from(sorted(openapi.paths().items())))
    if path == "/api/events":
        return
    method = data.draw(st.sampled_from(sorted(methods)))
    names = [parameter["name"] for parameter in methods[method].get("parameters", ()) if parameter["in"] == "query"]
    place = {
        name: quote(data.draw(_VALUES | st.just("0")), safe="") or "0" for name in ("level", "column", "row", "form")
    }
    place["key"] = key_of(data.draw(st.sampled_from((WHOLE, URGENT, TORN, TEXT))))
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(names), _VALUES), max_size=6)) if names else []
    address = path.format(**place) + "?" + urlencode(chosen, errors="replace")
    answer = served.browser.ask(method.upper(), address, data.draw(st.none() | st.dictionaries(st.text(), st.text())))
    assert answer.status < 500 or answer.status == 501, (method, address, answer.body)


def test_a_slide_that_has_gone_is_an_answer(tmp_path, results):
    """Its result stays readable; a slide that is replaced is shown as it is now."""
    shutil.copytree(results.out, tmp_path / "out")
    slide = tmp_path / "moved.tif"
    shutil.copyfile(results.slides / "torn.tif", slide)
    summary = tmp_path / "out" / "slides" / "torn.json"
    values = json.loads(summary.read_text()) | {"path": str(slide)}
    summary.write_text(json.dumps(values))
    with serve(tmp_path / "out", tmp_path) as page:
        before = page.get(page.slide(TORN, "/overview.jpg"))
        shutil.copyfile(results.slides / f"{WHOLE}.tif", slide)
        after = page.get(page.slide(TORN, "/overview.jpg"), if_none_match=before.headers["etag"])
        assert after.status == 200 and after.body != before.body
        slide.unlink()
        assert page.get(page.slide(TORN, "/overview.jpg")).json["code"] == "slide_gone"
        assert page.get(page.slide(TORN, "/tile/0/0_0.jpg")).json["code"] == "slide_gone"
        assert page.json(page.slide(TORN))["problem"]["code"] == "slide_gone"
        assert len(Heat.of(page.get(page.slide(TORN, "/heat")).body).states) > 0


def test_another_name_than_the_pages_is_refused(served):
    """So that no other site's name can be made to lead here."""
    assert served.get("/api/worklist", host="evil.example").status == 400
    assert served.get("/", host="127.0.0.1").status == 200


@pytest.mark.long
def test_schemathesis_finds_no_fault(results, tmp_path):
    """Made-up requests after the OpenAPI document: no answer of 500, none that the document does not know."""
    program = shutil.which("schemathesis") or shutil.which("schemathesis", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("schemathesis is not installed")
    checks = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"
    with serve(results.out, tmp_path) as page:
        page.browser.start()
        base = f"http://127.0.0.1:{page.browser.port}"
        command = [program, "run", f"{base}/api/openapi.json", "-H", f"X-CSRF: {page.browser.csrf}", "--checks", checks]
        command += ["--exclude-path", "/api/events", "--max-examples", "30", "--request-timeout", "20"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-6000:]
