"""A report that opens without a server and without this project: one HTML file that asks for no other."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from .._format import number, percent
from ..evaluation import Evaluation, forgetting_table, verdict
from ..plan import Plan
from ..study import Study

__all__ = ["report_html"]

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d1d9e0;--bar:#0072b2;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--bar:#56b4e9;--page:#0d1117}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2rem}p.soft{color:var(--soft);margin-top:.25rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right}th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:600}
.bar{display:block;height:.6rem;background:var(--bar);border-radius:2px}code{font-size:.9em;overflow-wrap:anywhere}
pre{white-space:pre-wrap}
""".strip()
# Nothing is loaded from anywhere, and nothing is sent.
_POLICY = "default-src 'none';style-src 'unsafe-inline';script-src 'unsafe-inline';img-src data:"
# Charts take the colour of the page's text, also when it turns dark.
_INK = """
const ink=()=>document.querySelectorAll('.plotly-graph-div').forEach(
  chart=>Plotly.relayout(chart,{'font.color':getComputedStyle(document.body).color}));
ink();matchMedia('(prefers-color-scheme:dark)').addEventListener('change',ink);
""".strip()


def report_html(
    plan: Plan,
    evaluation: Evaluation | None = None,
    study: Study | None = None,
    *,
    charts: Mapping[str, str] | None = None,
    commands: str = "",
) -> str:
    """The plan as a page: what was asked, what it costs and gives, what stays of each group.

    Args:
        plan: what was decided.
        evaluation: what was measured, shown beside what was predicted.
        study: for the fidelity of each group.
        charts: Plotly figures by title, as ``plotly.io.to_html`` gives them without the page around; the first one with
            plotly.js in it.
        commands: the command lines that do the same.
    """
    settings = plan.settings
    if plan.kind == "prune":
        asked = (
            f"{settings.remain:.1%} of the {settings.budget}"
            if settings.remain is not None
            else "components set by hand"
        )
        title = f"{plan.model.spec}, pruned to {asked}"
        how = f"score {settings.score}, allocation {settings.allocation}, compensation {settings.compensate}"
    else:
        title = f"{plan.model.spec} without {', '.join(plan.forget)}"
        how = f"{settings.method}, {settings.strength or 0:.2%} of the slices in {', '.join(settings.layers)}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>",
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1><p class=soft>{escape(how)}</p>",
    ]
    if plan.note:
        parts.append(f"<p>{escape(plan.note)}</p>")
    parts.append(_costs(plan, evaluation))
    if evaluation is not None:
        parts.append(_forgetting(evaluation))
        parts.append(_classes(evaluation))
    if plan.kind == "prune":
        parts.append(_groups(plan, study))
    parts += [f"<h2>{escape(name)}</h2>{chart}" for name, chart in (charts or {}).items()]
    parts += [f"<script>{_INK}</script>"] if charts else []
    parts.append(_provenance(plan, evaluation))
    parts += [f"<h2>The same from the command line</h2><pre><code>{escape(commands)}</code></pre>"] if commands else []
    return "\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML; the caller escapes."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _costs(plan: Plan, evaluation: Evaluation | None) -> str:
    rows = []
    if evaluation is not None:
        e = evaluation
        if e.perplexity is None:
            rows.append(["Accuracy", percent(e.accuracy_before), percent(e.accuracy)])
        else:
            rows += [
                [f"Perplexity of {number(e.tokens)} tokens", number(e.perplexity_before, 3), number(e.perplexity, 3)],
                [
                    "Tokens a second, read",
                    number(e.prefill_tokens_per_second_before),
                    number(e.prefill_tokens_per_second),
                ],
                [
                    "Tokens a second, written",
                    number(e.decode_tokens_per_second_before),
                    number(e.decode_tokens_per_second),
                ],
            ]
        rows += [
            [
                f"Latency, ms (batch {e.latency_batch}, {escape(e.device)})",
                number(e.latency_ms_before, 2),
                number(e.latency_ms, 2),
            ],
            ["Parameters", number(e.params_before), number(e.params)],
            ["Multiply-accumulates of one sample", number(e.flops_before), number(e.flops)],
            ["Bytes of the weights", number(e.bytes_before), number(e.bytes)],
        ]
    elif "params" in plan.predicted:
        p = plan.predicted
        rows += [
            ["Parameters (predicted)", number(p["params_before"]), number(p["params"])],
            ["Multiply-accumulates of one sample (predicted)", number(p["flops_before"]), number(p["flops"])],
        ]
    if "fidelity" in plan.predicted:
        rows.append(["Fidelity of the layers (predicted)", percent(1.0), percent(plan.predicted["fidelity"])])
    if "bound" in plan.predicted:
        rows.append(["Bound on the RMS error of the logits (estimated)", "0", number(plan.predicted["bound"], 3)])
    return "<h2>Before and after</h2>" + _table(["", "before", "after"], rows) if rows else ""


def _forgetting(e: Evaluation) -> str:
    if e.forget is None:
        return ""
    rows = [[title, *map(percent, values)] for title, *values in forgetting_table(e)]
    words = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdict(e))
    return f"<h2>Is it forgotten?</h2><ul>{words}</ul>" + _table(["", "unchanged", "logit mask", "changed"], rows)


def _classes(e: Evaluation) -> str:
    rows = [
        [escape(name), number(row.samples), percent(row.before), percent(row.after)]
        for name, row in e.per_class.items()
    ]
    if not rows:  # a language model
        return ""
    return "<h2>Per class</h2>" + _table(["class", "images", "before", "after"], rows)


def _groups(plan: Plan, study: Study | None) -> str:
    rows = []
    for name, group in plan.groups.items():
        kept = len(group.keep)
        share = kept / group.total
        fidelity = "–"
        if study is not None and study.has_score(plan.settings.score):
            curve = study.curve(name, plan.settings.score, plan.settings.level, plan.settings.centred)
            fidelity = percent(float(curve[kept]))
        bar = f"<span class=bar style='width:{share:.1%}'></span>"
        rows.append([f"<code>{escape(name)}</code>", f"{kept} of {group.total}", bar, fidelity])
    return "<h2>What stays</h2>" + _table(["group", "components", "share", "fidelity (predicted)"], rows)


def _provenance(plan: Plan, evaluation: Evaluation | None) -> str:
    data = plan.calibration
    rows = [
        ["Network", f"<code>{escape(plan.model.spec)}</code>"],
        ["Fingerprint of its weights (sha256)", f"<code>{plan.model.fingerprint}</code>"],
        [
            "Decided on",
            f"{data.samples:,} samples of {escape(data.spec)}, split {escape(data.split)}, seed {data.seed}",
        ],
    ]
    if evaluation is not None:
        measured = evaluation.data
        rows.append(
            ["Measured on", f"{measured.samples:,} samples of {escape(measured.spec)}, split {escape(measured.split)}"]
        )
    return "<h2>Where it comes from</h2>" + _table(["", ""], rows)
