"""A report that opens without a server and without this project: one HTML file that loads no other.

Names, notes and settings come from strangers, and a report is passed on: all of them are escaped, and the page's policy lets only
the scripts run that are listed by their hashes, those of the charts and the template's own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jinja2

from ..evaluation import Evaluation, forgetting_table, verdict
from ..plan import Plan
from ..study import Study
from ..text import number, percent

__all__ = ["report_html"]

_TEMPLATE = "report.html.j2"
_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script", re.DOTALL | re.IGNORECASE)
# Charts take the colour of the page's text, also when it turns dark.
_INK = """const ink=()=>document.querySelectorAll('.plotly-graph-div').forEach(
  chart=>Plotly.relayout(chart,{'font.color':getComputedStyle(document.body).color}));
ink();matchMedia('(prefers-color-scheme:dark)').addEventListener('change',ink);"""
Row = tuple[str, ...]


@functools.cache
def _template() -> jinja2.Template:
    # Everything is escaped unless the template says otherwise.
    loader = jinja2.PackageLoader("modhifi.export", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(_TEMPLATE)


def report_html(
    plan: Plan,
    evaluation: Evaluation | None = None,
    study: Study | None = None,
    *,
    charts: Mapping[str, str] | None = None,
    commands: str = "",
) -> str:
    """The plan as a page: what was asked for, what it costs and gives, which components of each group are kept.

    Args:
        plan: what was decided.
        evaluation: what was measured, shown beside the prediction.
        study: for the fidelity of each group.
        charts: Plotly figures by title, as ``plotly.io.to_html`` gives them without the page around; the first one with
            plotly.js in it. They are inserted as they are, scripts included: texts from outside must be escaped in them.
        commands: the command lines that do the same.
    """
    title, how = _pruned(plan) if plan.kind == "prune" else _edited(plan)
    # A lone surrogate, as in the name of a file that is not UTF-8, could not be written.
    drawn = {name: _writable(chart) for name, chart in (charts or {}).items()}
    scripts = [script for chart in drawn.values() for script in _SCRIPT.findall(chart)] + [_INK] * bool(drawn)
    page = _template().render(
        title=title,
        how=how,
        plan=plan,
        costs=_costs(plan, evaluation),
        verdict=verdict(evaluation) if evaluation is not None else [],
        forgetting=_forgetting(evaluation),
        classes=_classes(evaluation),
        groups=_groups(plan, study) if plan.kind == "prune" else [],
        charts=drawn,
        ink=_INK,
        policy=_policy(scripts),
        provenance=_provenance(plan, evaluation),
        commands=commands,
    )
    return _writable(page)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _policy(scripts: list[str]) -> str:
    """The page's Content-Security-Policy: nothing is loaded or sent, and of scripts only these run."""
    hashes = dict.fromkeys(f"'sha256-{_digest(script)}'" for script in scripts) or {"'none'": None}
    # Plotly writes its own styles; a style can neither load nor send anything here.
    rules = (
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
    )
    return "; ".join([*rules, f"script-src {' '.join(hashes)}"])


def _digest(script: str) -> str:
    # Browsers read every end of line as \n before they compute the hash.
    read = script.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(read.encode()).digest()).decode()


def _pruned(plan: Plan) -> tuple[str, str]:
    settings = plan.settings
    asked = "components set by hand" if settings.remain is None else f"{settings.remain:.1%} of the {settings.budget}"
    how = f"score {settings.score}, allocation {settings.allocation}, compensation {settings.compensate}"
    return f"{plan.model.spec}, pruned to {asked}", how


def _edited(plan: Plan) -> tuple[str, str]:
    settings = plan.settings
    measured = settings.strength is not None and settings.strength_unit != "none"
    strength = f", {settings.strength_unit or 'strength'}: {settings.strength:.3g}" if measured else ""
    return (
        f"{plan.model.spec} without {', '.join(plan.forget)}",
        f"{settings.method}{strength}, in {', '.join(settings.layers)}",
    )


def _costs(plan: Plan, evaluation: Evaluation | None) -> list[Row]:
    rows: list[Row] = []
    p = plan.predicted
    if evaluation is not None:
        rows += _measured(evaluation)
    elif "params" in p:
        rows += [
            ("Parameters (predicted)", number(p["params_before"]), number(p["params"])),
            ("Multiply-accumulates per sample (predicted)", number(p["flops_before"]), number(p["flops"])),
        ]
    if "fidelity" in p:
        rows.append(("Fidelity of the layers (predicted; 100% is perfect)", percent(1.0), percent(p["fidelity"])))
    if "bound" in p:
        rows.append(("Bound on the RMS error of the logits (estimated; lower is better)", "0", number(p["bound"], 3)))
    return rows


def _measured(e: Evaluation) -> list[Row]:
    if e.perplexity is None:
        rows: list[Row] = []
        if e.accuracy is not None:
            rows.append(("Accuracy", percent(e.accuracy_before), percent(e.accuracy)))
    else:
        prefill, decode = "Prefill, tokens/s", "Decode, tokens/s"
        rows = [
            (
                f"Perplexity of {number(e.tokens)} tokens (lower is better)",
                number(e.perplexity_before, 3),
                number(e.perplexity, 3),
            ),
            (prefill, number(e.prefill_tokens_per_second_before), number(e.prefill_tokens_per_second)),
            (decode, number(e.decode_tokens_per_second_before), number(e.decode_tokens_per_second)),
        ]
    if e.agreement is not None:
        rows += [
            ("Same answer as the original network (higher is better)", "", percent(e.agreement)),
            ("Relative error of the logits (lower is better)", "", number(e.relative_error, 4)),
            ("KL divergence from the original network, nats (lower is better)", "", number(e.kl, 4)),
        ]
    latency = f"Latency, ms (batch {e.latency_batch}, {e.device})"
    return [
        *rows,
        (latency, number(e.latency_ms_before, 2), number(e.latency_ms, 2)),
        ("Parameters", number(e.params_before), number(e.params)),
        ("Multiply-accumulates per sample", number(e.flops_before), number(e.flops)),
        ("Size of the weights, bytes", number(e.bytes_before), number(e.bytes)),
    ]


def _forgetting(e: Evaluation | None) -> list[Row]:
    if e is None or e.forget is None:
        return []
    return [(title, *map(percent, values)) for title, *values in forgetting_table(e)]


def _classes(e: Evaluation | None) -> list[Row]:
    return [
        (name, number(row.samples), percent(row.before), percent(row.after))
        for name, row in (e.per_class if e is not None else {}).items()
    ]


def _groups(plan: Plan, study: Study | None) -> list[dict[str, Any]]:
    found = []
    settings = plan.settings
    for name, group in plan.groups.items():
        fidelity = None
        if study is not None and study.has_score(settings.score):
            curve = study.curve(name, settings.score, settings.level, settings.centred)
            fidelity = float(curve[len(group.keep)])
        found.append({"name": name, "kept": len(group.keep), "total": group.total, "fidelity": percent(fidelity)})
    return found


def _provenance(plan: Plan, evaluation: Evaluation | None) -> list[Row]:
    data = plan.calibration
    rows: list[Row] = [
        ("Network", plan.model.spec),
        ("Fingerprint of its weights (sha256)", plan.model.fingerprint),
        ("Calibration data", f"{data.samples:,} samples of {data.spec}, split {data.split}, seed {data.seed}"),
    ]
    if evaluation is not None:
        test = evaluation.data
        rows.append(("Test data", f"{test.samples:,} samples of {test.spec}, split {test.split}"))
    return rows
