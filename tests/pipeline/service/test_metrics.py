"""Prometheus metrics, and the dashboard and alert rules that are made of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline.service.metrics import names, text
from pipeline.service.snapshot import Snapshot
from tests.pipeline.service import looks

# Made by Prometheus itself for everything that it scrapes.
PROMETHEUS_OWN = {"up"}


def parsed(look: Snapshot) -> dict[str, list]:
    """Samples by name, as Prometheus reads them."""
    samples: dict[str, list] = {}
    for family in text_string_to_metric_families(text(look, 300.0).decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def value(samples: dict[str, list], name: str, **labels: str) -> float:
    found = [sample.value for sample in samples[name] if sample.labels == labels]
    assert len(found) == 1, (name, labels, samples[name])
    return found[0]


def test_parses_and_says_what_the_look_says():
    """Every queue, stage, GPU, class and kind of reason has its figure, in base units."""
    samples = parsed(looks.snapshot())
    assert value(samples, "slidestream_up") == 1
    assert value(samples, "slidestream_slides", **{"class": "routine", "state": "queued"}) == 2
    assert value(samples, "slidestream_slides_finished_total", **{"class": "stat", "state": "complete"}) == 1
    assert value(samples, "slidestream_failures_total", kind="read_error") == 3
    assert value(samples, "slidestream_turnaround_seconds", **{"class": "stat", "quantile": "0.99"}) == 44
    assert value(samples, "slidestream_deadlines_missed", **{"class": "stat"}) == 1
    assert value(samples, "slidestream_deadlines_missed", **{"class": "routine"}) == 0
    assert value(samples, "slidestream_slots", state="ready") == 1
    assert value(samples, "slidestream_stage_seconds_total", stage="reader", doing="waiting_input") == 5
    assert value(samples, "slidestream_stage_restarts_total", stage="writer") == 1
    assert value(samples, "slidestream_gpu_batch_seconds", worker="inference-0", quantile="0.5") == pytest.approx(
        0.0081
    )
    assert value(samples, "slidestream_gpu_memory_bytes", worker="inference-0") == 4000 * 2**20
    assert value(samples, "slidestream_events_unsent", sink="webhook") == 2
    assert value(samples, "slidestream_degraded") == 1
    assert value(samples, "slidestream_troubles", kind="disk_low") == 2


def test_every_field_of_a_gpu_is_optional():
    """An engine that tells less gives fewer samples, not zeros."""
    gpu = replace(looks.snapshot().gpus[0], watts=None, busy=None)
    samples = parsed(looks.snapshot(gpus=(gpu,)))
    assert "slidestream_gpu_power_watts" not in samples and "slidestream_gpu_busy_ratio" not in samples
    assert "slidestream_gpu_rows_total" in samples


def test_silent_supervisor_leaves_out_what_it_alone_knows():
    """No stale figure looks like a fresh one: only what the ledger says is left, and that the supervisor is silent."""
    samples = parsed(looks.snapshot(answers=False, problem="no answer"))
    assert value(samples, "slidestream_up") == 0
    assert value(samples, "slidestream_progressing") == 0
    assert "slidestream_slides" in samples
    assert not any(name.startswith(("slidestream_patches", "slidestream_stage")) for name in samples)


def test_nothing_known_is_still_a_page():
    """Neither supervisor nor ledger: the page says so."""
    samples = parsed(Snapshot(1.0))
    assert value(samples, "slidestream_up") == 0 and value(samples, "slidestream_ledger_readable") == 0


def test_labels_are_escaped():
    """Whatever stands in a label cannot break the page."""
    samples = parsed(looks.snapshot(unsent={'a"b\\c\nd': 1}))
    assert value(samples, "slidestream_events_unsent", sink='a"b\\c\nd') == 1


def test_names_end_in_units():
    """What only grows ends in _total, and a name has no unit but the base units."""
    for name in names(looks.snapshot()):
        assert re.fullmatch(r"slidestream_[a-z_]+", name)
        assert not re.search(r"_(ms|mib|percent|minutes)(_|$)", name)


def _used(expression: str) -> set[str]:
    return set(re.findall(r"\bslidestream_[a-z_]+\b", expression))


def test_dashboard_asks_for_metrics_that_exist(root):
    """Every name in the dashboard is one that the service gives, and panels do not lie on each other."""
    board = json.loads((root / "configs/monitoring/grafana-dashboard.json").read_text())
    known = names(looks.snapshot())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 20
    for expression in expressions:
        assert _used(expression) and _used(expression) <= known, expression
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_dashboard_shows_every_metric_of_the_flow(root):
    """No gauge or counter of a stage, queue or class is without a picture."""
    board = (root / "configs/monitoring/grafana-dashboard.json").read_text()
    unseen = names(looks.snapshot()) - _used(board)
    assert unseen <= {
        f"slidestream_{name}"
        for name in (
            *("build_info", "start_time_seconds", "draining", "ledger_readable", "workable", "slides_failing"),
            *("patches_planned_total", "patches_inferred_total"),
            *("gpu_info", "gpu_busy_seconds_total", "gpu_batches_total", "gpu_load_ratio"),
        )
    }


def test_alerts_are_whole_and_ask_for_metrics_that_exist(root):
    """Every rule has an expression over known names, a severity, a summary and what to do."""
    groups = yaml.safe_load((root / "configs/monitoring/alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    known = names(looks.snapshot()) | PROMETHEUS_OWN
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert _used(rule["expr"]) and _used(rule["expr"]) <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_alerts_load_in_prometheus(root):
    """promtool reads the rules, and they fire when they should (skipped where promtool is not installed)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    folder = root / "configs/monitoring"
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]):
        done = subprocess.run([promtool, *command], check=False, cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_asks_in_promql(root, tmp_path):
    """Prometheus understands every question of the dashboard (skipped where promtool is not installed)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    board = json.loads((root / "configs/monitoring/grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    rules = [{"record": f"panel:{n}", "expr": text.replace("$instance", ".*")} for n, text in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", "rules.yaml"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
