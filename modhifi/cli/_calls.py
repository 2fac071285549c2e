"""One function for each call: from parsed arguments to a JSON value and the text for people."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import modhifi

from .._format import by_reason, listed, number, percent
from ..bounds import BoundReport, Grain
from ..components import Group
from ..data import DEFAULT_DATA, SHIPPED_TEXT, Data, DataRef, load_data
from ..errors import UserError
from ..evaluation import Evaluation, forgetting_table, verdict
from ..lipschitz import ESTIMATORS
from ..models import InputSpec, Model, ModelRef, list_models, reload
from ..plan import Plan
from ..progress import Progress
from ..pruning import SHARES, LatencyTable, measure_table, sensitivity
from ..study import Study
from ..unlearning import METHODS as FORGETTING
from ._multimodal import multimodal as multimodal
from ._parser import build_parser
from ._processes import joined
from ._table import Answer
from ._table import table as _table


def _data(asked: argparse.Namespace, known: DataRef, samples: int | None = None) -> Data:
    """The data that was named, or that the study was made on."""
    if asked.data is None:
        return load_data(known.spec, asked.data_root or known.root, asked.split, samples, asked.seed)
    return load_data(asked.data, asked.data_root, asked.split, samples, asked.seed)


def _changed(plan_path: str, weights: str | None, device: str, progress: Progress) -> tuple[Plan, Model, Model]:
    """The plan, the network it was made for, and the one it makes."""
    plan = Plan.load(plan_path)
    model = reload(plan.model, weights, device=device, progress=progress)
    return plan, model, modhifi.apply(plan, model)


def models(asked: argparse.Namespace, progress: Progress) -> Answer:  # noqa: ARG001
    forms = list_models()
    width = max(len(spec) for spec, _ in forms)
    text = "\n".join(f"{spec.ljust(width)}  {what}" for spec, what in forms)
    return {"models": [{"spec": spec, "what": what} for spec, what in forms]}, text


def analyze(asked: argparse.Namespace, progress: Progress) -> Answer:
    with joined(asked.device) as device:
        model = modhifi.load_model(
            asked.model,
            asked.weights,
            mean=asked.mean,
            std=asked.std,
            classes=asked.classes,
            context=asked.context,
            device=device,
            progress=progress,
        )
        usual = DEFAULT_DATA if model.tokens is None else SHIPPED_TEXT
        data = load_data(asked.data or usual, asked.data_root, asked.split)
        study = modhifi.analyze(
            model,
            data,
            asked.samples,
            seed=asked.seed,
            constants=asked.constants,
            constant_samples=asked.constant_samples,
            out=asked.out,
            progress=progress,
        )
    value = {
        "study": asked.out,
        "model": study.model.spec,
        "fingerprint": study.model.fingerprint,
        "samples": study.data.samples,
        "groups": len(study.groups),
        "components": sum(group.size for group in study.groups),
        "skipped": [skip.model_dump() for skip in study.skipped],
        "params": study.dense.params,
        "flops": study.dense.flops,
        "seconds": study.seconds,
    }
    text = (
        f"{study.model.spec}: {value['components']} components in {value['groups']} groups, {len(study.skipped)} left whole;"
        f" {study.data.samples} {_samples(study.model)} in {study.seconds:.1f} s\nwritten to {asked.out}"
    )
    return value, text


def _samples(model: ModelRef) -> str:
    """What one calls the samples of a network."""
    return "images" if isinstance(model.input, InputSpec) else f"windows of {model.input.context} tokens"


def show(asked: argparse.Namespace, progress: Progress) -> Answer:
    study = Study.load(asked.study)
    if asked.group is not None:
        return _show_group(study, asked.group, asked.eta, progress)
    if asked.sensitivity:
        return _show_sensitivity(study)
    if asked.constants:
        return _show_constants(study)
    rows = [_about(study, group, asked.eta) for group in study.groups]
    value = {
        "study": asked.study,
        "model": study.model.spec,
        "eta": asked.eta,
        "params": study.dense.params,
        "flops": study.dense.flops,
        "groups": rows,
        "skipped": [skip.model_dump() for skip in study.skipped],
    }
    head = [
        "group",
        "kind",
        "components",
        f"HiFi {asked.eta:g}",
        "fidelity of half",
        "Lipschitz ≥",
        "params each",
        "FLOPs each",
        "read by",
    ]
    text = _table(
        head,
        [
            [
                row["group"],
                row["kind"],
                row["components"],
                row["hifi_size"],
                f"{row['fidelity_half']:.4f}",
                "–" if row["lipschitz"] is None else f"{row['lipschitz']:.3g}",
                number(row["params_per_component"]),
                number(row["flops_per_component"]),
                _layers(len(row["read_by"])),
            ]
            for row in rows
        ],
    )
    whole = [
        f"left whole: {listed(names)}: {reason}"
        if len(names) == 1
        else f"left whole, {len(names)}: {listed(names)}: {reason}"
        for reason, names in by_reason(study.skipped).items()
    ]
    return value, "\n".join([text, *whole])


def _show_sensitivity(study: Study) -> Answer:
    found = sensitivity(study)
    value = {"shares": list(SHARES), "groups": {name: errors.tolist() for name, errors in found.items()}}
    rows = [[name, *(f"{error:.3g}" for error in errors)] for name, errors in found.items()]
    text = "estimated RMS error of the logits when only this group keeps so much\n"
    return value, text + _table(["group", *(f"{share:.1%}" for share in SHARES)], rows)


def _show_constants(study: Study) -> Answer:
    names = study.estimators
    layers = {}
    for layer in study.layers:
        row: dict[str, Any] = {
            name: {"maximum": one.maximum, "rms": one.rms, "quantile_90": one.quantile(), "samples": one.samples}
            for name, one in ((name, by_layer[layer]) for name, by_layer in study.gains.items())
        }
        if study.certified:
            row["certified"] = study.certified[layer].model_dump()
        layers[layer] = row
    norms = {name: float(values.min()) for name, values in study.norms.items()}
    value = {
        "claims": {name: ESTIMATORS[name].claim for name in names},
        "layers": layers,
        "smallest_norms": norms,
    }

    def cells(name: str, found: dict[str, Any]) -> list[str]:
        if name != "certified":
            return [f"{found[which]:.3g}" for which in ("maximum", "rms", "quantile_90")]
        return [found["reason"] if found["value"] is None else f"{found['value']:.3g}"]

    head = [
        title for name in names for title in ([f"{name} ≤"] if name == "certified" else [f"{name} ≥", "RMS", "90%"])
    ]
    rows = [[layer, *(cell for name in names for cell in cells(name, row[name]))] for layer, row in layers.items()]
    lines = [_table(["layer", *head], rows)]
    if norms:
        lines.append(
            _table(["LayerNorm", "smallest norm seen"], [[name, f"{norm:.3g}"] for name, norm in norms.items()])
        )
    lines += [f"{name}: {ESTIMATORS[name].says}" for name in names]
    lines.append("RMS and 90% hold for the samples only.")
    if any(upper.ranges for upper in study.certified.values()):
        lines.append("certified bounds hold while LayerNorms and attention stay in the ranges seen")
    return value, "\n".join(lines)


def _about(study: Study, group: Group, eta: float) -> dict[str, Any]:
    """What is said of a group."""
    one_less = study.cost({group.name: group.size - 1})
    readers = [consumer.layer for consumer in group.consumers]
    return {
        "group": group.name,
        "kind": group.kind,
        "components": group.size,
        "read_by": readers,
        "fidelity_mean": float(study.scores(group.name)["fidelity"].mean()),
        "fidelity_half": float(study.curve(group.name)[(group.size + 1) // 2]),
        "hifi_size": study.hifi_size(group.name, eta),
        "lipschitz": max(study.constant(layer) for layer in readers) if study.estimators else None,
        "lipschitz_rms": max(study.constant(layer, typical=True) for layer in readers) if study.estimators else None,
        "params_per_component": study.dense.params - one_less.params,
        "flops_per_component": study.dense.flops - one_less.flops,
    }


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def _show_group(study: Study, name: str, eta: float, progress: Progress) -> Answer:
    group = study.group(name)
    progress(0, 1, "deriving the scalar curve")
    scores = {key: values.tolist() for key, values in study.scores(name).items()}
    curves = {level: study.curve(name, compensate=level).tolist() for level in ("none", "scalar", "full")}
    order = study.order(name).tolist()
    about = _about(study, group, eta) | {"hifi_size_scalar": study.hifi_size(name, eta, compensate="scalar")}
    value = about | {"eta": eta, "scores": scores, "order": order, "curves": curves}
    rows = [
        [
            index,
            f"{scores['fidelity'][index]:.4f}",
            f"{scores['greedy'][index]:.5f}",
            place + 1,
            f"{curves['full'][place + 1]:.4f}",
        ]
        for place, index in enumerate(order)
    ]
    text = (
        f"{name}: {group.size} components ({group.kind}), HiFi {eta:g}: {about['hifi_size']}"
        f" (scalar: {about['hifi_size_scalar']})\n"
        f"read by {_layers(len(group.consumers))}: {', '.join(about['read_by'])}\n"
    )
    return value, text + _table(["component", "fidelity", "cost of removal", "rank", "fidelity up to here"], rows)


def prune(asked: argparse.Namespace, progress: Progress) -> Answer:
    Plan.claim(asked.out)
    study = Study.load(asked.study)
    if asked.flops is None and asked.params is None and asked.latency is None and not asked.keep:
        raise UserError("say how much remains: --flops R, --params R, --latency R or --keep GROUP=COUNT")
    if asked.published:
        usual = vars(build_parser().parse_args(["prune", asked.study, "--out", asked.out]))
        may = ("flops", "params", "published", "note", "json")
        for name, value in vars(asked).items():
            if name not in may and value != usual[name]:
                raise UserError(f"--published decides all but the budget itself; leave --{name.replace('_', '-')} away")
        plan = modhifi.pruning.published(study, flops=asked.flops, params=asked.params, progress=progress)
    else:
        model, latencies = None, None
        if asked.latency is not None:
            model = reload(study.model, device=asked.device, progress=progress)
            latencies = _latencies(Path(asked.study), study, model, asked.latency_batch, progress)
        plan = modhifi.prune(
            study,
            flops=asked.flops,
            params=asked.params,
            latency=asked.latency,
            overrides=dict(asked.keep),
            floors=dict(asked.floor),
            multiple=asked.multiple,
            score=asked.score,
            allocation=asked.allocation,
            constants=asked.constants,
            compensate=asked.compensate,
            centred=False if asked.raw else None,
            drift=not asked.no_drift,
            rectified=not asked.no_rectified,
            recalibrate_bn=asked.recalibrate_bn,
            latencies=latencies,
            latency_batch=asked.latency_batch,
            model=model,
            device=asked.device,
            progress=progress,
        )
    plan.note = asked.note
    plan.save(asked.out)
    kept = {name: len(group.keep) for name, group in plan.groups.items()}
    value = {
        "plan": asked.out,
        "predicted": plan.predicted,
        "kept": kept,
        "settings": plan.settings.model_dump(mode="json"),
    }
    p = plan.predicted
    rows = [[name, f"{count} of {plan.groups[name].total}"] for name, count in kept.items()]
    lines = [
        _table(["group", "kept"], rows),
        f"FLOPs {number(p['flops_before'])} → {number(p['flops'])} ({p['flops'] / p['flops_before']:.2%}),"
        f" parameters {number(p['params_before'])} → {number(p['params'])} ({p['params'] / p['params_before']:.2%})",
    ]
    if "bound" in p:
        lines.append(
            f"predicted fidelity {p['fidelity']:.4f}, estimated bound on the RMS error of the logits {p['bound']:.3g}"
        )
    if "latency_ms" in p:
        share = p["latency_ms"] / p["latency_ms_before"]
        lines.append(
            f"latency {p['latency_ms_before']:.2f} → {p['latency_ms']:.2f} ms ({share:.1%}), measured in turns on this machine"
        )
    if plan.settings.ridges:
        low, high = min(plan.settings.ridges.values()), max(plan.settings.ridges.values())
        lines.append(f"ridge {low:.1g} to {high:.1g} of the mean eigenvalue, by layer in the plan")
    return value, "\n".join([*lines, f"written to {asked.out}"])


def _latencies(folder: Path, study: Study, model: Model, batch: int, progress: Progress) -> LatencyTable:
    """The table of latencies that lies in the study's folder, measured and put there if it is of another machine."""
    path = folder / "latency.json"
    if path.exists():
        known = LatencyTable.load(path)
        if known.fits(model, batch):
            return known
    table = measure_table(model, study.structure, batch=batch, progress=progress)
    table.save(path)
    return table


def compare(asked: argparse.Namespace, progress: Progress) -> Answer:
    study = Study.load(asked.study)
    model = reload(study.model, asked.weights, device=asked.device, progress=progress)
    found = modhifi.pruning.compare(
        study,
        _data(asked, study.data, asked.samples),
        flops=asked.flops,
        params=asked.params,
        latency=asked.latency,
        methods=asked.methods,
        model=model,
        progress=progress,
    )
    rows: list[dict[str, Any]] = []
    for row in found.rows:
        e = row.evaluation
        plan = None
        if asked.out is not None:
            plan = str(row.plan.save(Path(asked.out) / f"{row.method.name}-{row.remain:g}.json"))
        rows.append(
            {
                "method": row.method.name,
                "title": row.method.title,
                "labels": row.method.needs_labels,
                "remain": row.remain,
                **({"accuracy": e.accuracy} if e.perplexity is None else {"perplexity": e.perplexity}),
                "flops": e.flops,
                "params": e.params,
                "latency_ms": e.latency_ms,
                "seconds": row.seconds,
                "plan": plan,
            }
        )
    dense = found.dense
    value = {
        "model": study.model.spec,
        "samples": dense.samples,
        **(
            {"accuracy_before": dense.accuracy}
            if dense.perplexity is None
            else {"perplexity_before": dense.perplexity, "context": dense.context, "stride": dense.stride}
        ),
        "flops_before": dense.flops,
        "params_before": dense.params,
        "latency_ms_before": dense.latency_ms,
        "device": dense.device,
        "rows": rows,
    }
    language = dense.perplexity is not None

    def quality(found: dict[str, Any]) -> list[str]:
        """How good, and a bar as long as that is near to the best there can be."""
        if language:
            return [number(found["perplexity"], 3), _bar(min(1.0, (dense.perplexity or 0.0) / found["perplexity"]))]
        return [percent(found["accuracy"]), _bar(found["accuracy"])]

    ranked = sorted(rows, key=lambda row: (-row["remain"], row["perplexity"] if language else -row["accuracy"]))
    cells = [
        [
            row["title"],
            *quality(row),
            f"{row['flops'] / dense.flops:.1%}",
            f"{row['params'] / dense.params:.1%}",
            f"{row['latency_ms']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in ranked
    ]
    unchanged = quality({"accuracy": dense.accuracy, "perplexity": dense.perplexity})
    before = ["unchanged", *unchanged, "100%", "100%", f"{dense.latency_ms:.2f}", ""]
    counted = f"{dense.samples} windows" if language else f"{dense.samples} images"
    head = [counted, "perplexity" if language else "accuracy", "", "FLOPs", "parameters", "ms", "s to decide"]
    return value, _table(head, [before, *cells])


def _bar(share: float) -> str:
    """20 characters wide, to the left."""
    return ("█" * round(20 * share)).ljust(20)


def unlearn(asked: argparse.Namespace, progress: Progress) -> Answer:
    Plan.claim(asked.out)
    study = Study.load(asked.study)
    plan = modhifi.unlearn(
        study,
        asked.forget.split(","),
        _data(asked, study.data),
        method=asked.method,
        target=asked.target,
        depth=asked.depth,
        towards=asked.towards,
        predicted_labels=asked.predicted_labels,
        samples=asked.samples,
        seed=asked.seed,
        progress=progress,
    )
    plan.save(asked.out)
    value = {
        "plan": asked.out,
        "forget": plan.forget,
        "curve": [point.model_dump() for point in plan.curve],
        "predicted": plan.predicted,
        "settings": plan.settings.model_dump(mode="json"),
    }
    rows = [
        [f"{point.strength:.3g}", percent(point.forget_accuracy), percent(point.retain_accuracy)]
        for point in plan.curve
    ]
    text = (
        f"{_table([FORGETTING[asked.method].strength, 'forget', 'retain'], rows)}\n"
        f"{', '.join(plan.forget)}: {plan.settings.method}, strength {plan.settings.strength:.3g}, in"
        f" {listed(plan.settings.layers)}\non the calibration images: forget accuracy"
        f" {percent(plan.predicted['forget_accuracy'])}, retain accuracy {percent(plan.predicted['retain_accuracy'])}\n"
        f"written to {asked.out}; judge it with: modhifi evaluate {asked.out} --data DATA --split test"
    )
    return value, text


def bound(asked: argparse.Namespace, progress: Progress) -> Answer:
    study, plan = Study.load(asked.study), Plan.load(asked.plan)
    report = modhifi.bounds.measure(
        study,
        plan,
        _data(asked, study.data),
        samples=asked.samples,
        seed=asked.seed,
        held_out=not asked.no_held_out,
        progress=progress,
    )
    rows = [
        [
            row.layer,
            f"{row.local:.3g}",
            f"{row.gain:.3g}",
            f"{row.predicted:.3g}",
            f"{row.bound:.3g}",
            f"{row.measured:.3g}",
            _times(row.tightness),
        ]
        for row in report.rows
    ]
    head = ["layer", "local error", "gain", "predicted", "bound", "alone: measured", "tightness"]
    steps = [
        ["layer", len(rows), f"{report.bound:.3g}", *map(_times, _slack(report))],
        *([grain, one.steps, f"{one.bound:.3g}", *map(_times, _slack(one))] for grain, one in report.grains.items()),
    ]
    lines = [
        _table(head, rows),
        f"whole plan: bound {report.bound:.3g}, measured {report.measured:.3g}, tightness {_times(report.tightness)}"
        f" (RMS logits {report.logits:.3g}; predicted before anything was run {report.predicted:.3g})",
        _table(
            ["swapped in by", "steps", "bound", "tightness", "= largest for typical gain", "× errors added up"], steps
        ),
        f"gains are the largest seen on these {report.samples} images: lower bounds of the Lipschitz constants",
    ]
    held = report.held_out
    if held is not None:
        lines.append(
            f"with the constants of {held.samples} calibration samples instead: {percent(held.layers)} of the errors of a layer"
            f" alone are above their bound, {percent(held.plan)} of the whole plan's; exchangeable samples would give"
            f" {percent(held.expected)}"
        )
    text = "\n".join(lines)
    return report.model_dump(mode="json"), text


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _slack(bound: BoundReport | Grain) -> tuple[float | None, float | None, float | None]:
    return bound.tightness, bound.slack_maximum, bound.slack_sum


def evaluate(asked: argparse.Namespace, progress: Progress) -> Answer:
    plan, model, changed = _changed(asked.plan, asked.weights, asked.device, progress)
    data = _data(asked, plan.calibration, asked.samples)
    result = modhifi.evaluate(changed, data, model, context=asked.context, stride=asked.stride, progress=progress)
    return result.to_json(), _evaluation_text(result)


def _evaluation_text(e: Evaluation) -> str:
    quality = [["accuracy", percent(e.accuracy_before), percent(e.accuracy)]]
    counted = "images"
    if e.perplexity is not None:
        counted = f"windows of {e.context} tokens, stride {e.stride}"
        quality = [
            ["perplexity", number(e.perplexity_before, 3), number(e.perplexity, 3)],
            ["first guess right", percent(e.accuracy_before), percent(e.accuracy)],
            [
                "tokens a second, read",
                number(e.prefill_tokens_per_second_before),
                number(e.prefill_tokens_per_second),
            ],
            ["… written", number(e.decode_tokens_per_second_before, 1), number(e.decode_tokens_per_second, 1)],
        ]
    rows = [
        *quality,
        ["parameters", number(e.params_before), number(e.params)],
        ["FLOPs (MACs)", number(e.flops_before), number(e.flops)],
        ["bytes", number(e.bytes_before), number(e.bytes)],
        [
            f"latency, ms ({e.device}, batch {e.latency_batch})",
            number(e.latency_ms_before, 2),
            number(e.latency_ms, 2),
        ],
    ]
    rows += [[f"class {name}", percent(row.before), percent(row.after)] for name, row in e.per_class.items()]
    text = _table([f"{e.samples} {counted}", "before", "after"], rows)
    return text if e.forget is None else f"{text}\n\n{_forgetting_text(e)}"


def _forgetting_text(e: Evaluation) -> str:
    judged = [[title, *map(percent, values)] for title, *values in forgetting_table(e)]
    table = _table([f"without {', '.join(e.forget or ())}", "unchanged", "logit mask", "changed"], judged)
    return "\n".join([table, *verdict(e)])


def export(asked: argparse.Namespace, progress: Progress) -> Answer:
    formats = [name.strip() for name in asked.format.split(",") if name.strip()]
    _, _, changed = _changed(asked.plan, asked.weights, "auto", progress)
    folder = modhifi.export(changed, asked.out, formats, progress=progress)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    value = {"out": asked.out, "files": files, "params": sum(p.numel() for p in changed.module.parameters())}
    return value, _table([asked.out, "bytes"], [[name, number(size)] for name, size in files.items()])
