"""Grafana's dashboards, made here and nowhere else: `python tools/dashboards.py` writes docker/monitoring/grafana/dashboards/*.json.

Each panel is a line: title, unit, and queries with their legends. Layout, data source and schema are the same for all of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docker" / "monitoring" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "lados-prometheus"}
Panel = tuple[str, str, dict[str, str]] # title, unit, {legend: query}

LOOKED_AT = "sum by (label) (max by (predicted, label) (corrections))" # by what people say that it is
RIGHT = ("sum by (label) (max by (predicted, label) (corrections)"
         ' and on (predicted, label) label_replace(max by (label) (corrections), "predicted", "$1", "label", "(.*)"))') # the answer was the same

DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "overview": ("Is it well, is it fast, what does it see", [
        ("Instances of the API", "short", {"up": 'sum(up{job="lados-api"})', "with a model": "sum(model_ready)"}),
        ("Model in service", "short", {"{{model}} ({{engine}})": "max by (model, engine) (model_info) == 1"}),
        ("Images a second", "ops", {"images": "lados:images:rate5m"}),
        ("Failing requests about images", "percentunit", {"5 min": "lados:requests_bad:ratio_rate5m", "1 h": "lados:requests_bad:ratio_rate1h"}),
        ("Latency", "s", {"median": "lados:latency:p50_5m", "99 %": "lados:latency:p99_5m"}),
        ("Answers slower than a second", "percentunit", {"5 min": "lados:latency_slow:ratio_rate5m", "1 h": "lados:latency_slow:ratio_rate1h"}),
        ("Where the time goes", "s", {"{{stage}}": "sum by (stage) (rate(inference_latency_seconds_sum[5m])) / sum by (stage) (rate(inference_latency_seconds_count[5m]))"}),
        ("What it sees", "ops", {"{{class}}": "lados:images_by_class:rate5m"}),
        ("Parts", "short", {"{{part}}": "min by (part) (lados_part_up)"}),
    ]),
    "models": ("Classes, certainty, drift, certificates", [
        ("F1 of each class on the test images", "percentunit", {"{{class}} ({{model}})": "max by (class, model) (model_class_f1)"}),
        ("What people put right", "short", {"{{predicted}} is {{label}}": "max by (predicted, label) (corrections)"}),
        ("Right, of each class that people have looked at", "percentunit", {"{{label}}": f"({RIGHT} or {LOOKED_AT} * 0) / {LOOKED_AT}"}),
        ("Class shares of the latest answers", "percentunit", {"{{class}}": "lados:class_share:avg"}),
        ("Drift", "percentunit", {"{{model}}": "lados:drift:max"}),
        ("Mean confidence", "percentunit", {"{{model}}": "avg by (model) (inference_confidence_mean)"}),
        ("Left to a human", "percentunit", {"share": "lados:abstention:ratio_rate30m"}),
        ("Certificate fits the engine", "short", {"{{model}} {{engine}}": "min by (model, engine) (model_certificate_valid)"}),
    ]),
    "training": ("Trainings that run", [
        ("Loss", "short", {"{{job}}": "max by (job) (training_loss)"}),
        ("Macro-F1 on the validation images", "percentunit", {"{{job}}": "max by (job) (training_validation_macro_f1)"}),
        ("Epochs done", "short", {"{{job}}": "max by (job) (training_epochs_done)"}),
        ("Still to go", "s", {"{{job}}": "max by (job) (training_eta_seconds)"}),
        ("GPU use", "percentunit", {"{{host}} {{gpu}}": "max by (host, gpu) (gpu_utilization_ratio)"}),
        ("GPU memory", "bytes", {"{{host}} {{gpu}}": "max by (host, gpu) (gpu_memory_used_bytes)"}),
    ]),
    "jobs": ("Jobs and machines", [
        ("Workers", "short", {"{{queue}}": "max by (queue) (batch_workers)"}),
        ("Tasks", "short", {"{{queue}} {{state}}": "max by (queue, state) (batch_tasks)"}),
        ("Longest wait", "s", {"{{queue}}": "max by (queue) (batch_queue_oldest_seconds)"}),
        ("Jobs that ended", "short", {"{{kind}} {{state}}": "increase(lados:jobs_ended:total[1h])"}),
        ("Images of batches a second", "ops", {"images": "rate(lados:batch_images:total[5m])"}),
        ("Workers that died over a task", "short", {"{{kind}}": "sum by (kind) (increase(batch_worker_deaths_total[1h]))"}),
        ("Memory of workers", "bytes", {"{{worker}}": "max by (worker) (batch_worker_memory_bytes)"}),
        ("Cores that workers use", "short", {"{{worker}}": "sum by (worker) (rate(batch_worker_cpu_seconds_total[5m]))"}),
        ("Room on disks", "bytes", {"{{folder}}": "min by (folder) (disk_free_bytes)"}),
        ("Since the last backup", "s", {"backup": "time() - max(backup_last_success_timestamp_seconds)"}),
    ]),
}


def panel(number: int, title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    "Return a panel: a third of the width, in reading order."
    targets = [{"refId": chr(65 + i), "datasource": SOURCE, "expr": q, "legendFormat": legend} for i, (legend, q) in enumerate(queries.items())]
    return {"id": number + 1, "type": "timeseries", "title": title, "datasource": SOURCE, "targets": targets,
            "gridPos": {"h": 8, "w": 8, "x": 8 * (number % 3), "y": 8 * (number // 3)},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []}, "options": {"legend": {"showLegend": True}}}


def dashboard(name: str) -> dict[str, Any]:
    "Return a dashboard as Grafana imports it."
    title, panels = DASHBOARDS[name]
    return {"uid": f"lados-{name}", "title": f"lados: {title}", "tags": ["lados"], "schemaVersion": 39, "version": 1, "editable": False,
            "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "timezone": "browser",
            "panels": [panel(i, *p) for i, p in enumerate(panels)]}


def files() -> dict[Path, str]:
    "Return every file and its text."
    return {FOLDER / f"{name}.json": json.dumps(dashboard(name), indent=1) + "\n" for name in DASHBOARDS}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.name}\n")
