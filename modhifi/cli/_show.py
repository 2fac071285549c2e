"""``modhifi show``."""

from __future__ import annotations

import argparse
from typing import Any

from ..components import Group
from ..lipschitz import estimators
from ..progress import Progress
from ..pruning import SHARES, sensitivity
from ..study import Study
from ..text import listed, number
from ._table import Answer, table

HELP = "Show each group's components, fidelity, HiFi set size, Lipschitz estimate and cost."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--group", metavar="G", help="show one group, component by component")
    parser.add_argument(
        "--sensitivity", action="store_true", help="show the predicted error if one group at a time is pruned"
    )
    parser.add_argument(
        "--constants",
        action="store_true",
        help="show the Lipschitz constants of each layer, and what each estimator certifies",
    )
    parser.add_argument("--eta", type=float, default=0.8, help="fidelity that a HiFi set must reach (default: 0.8)")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
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
        "samples": study.data.samples,
        "samples_needed": study.samples_needed(),
    }
    head = [
        "group",
        "kind",
        "components",
        f"HiFi set (η = {asked.eta:g})",
        "fidelity of best half",
        "Lipschitz ≥",
        "params per component",
        "FLOPs per component",
        "read by",
    ]
    text = table(
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
    legend = (
        f"HiFi set: components needed for fidelity {asked.eta:g} on unseen samples, lower means that more can be removed;"
        " Lipschitz ≥: largest gain seen, lower means less sensitive"
    )
    skipped = [
        f"not prunable: {listed(names)}: {reason}"
        if len(names) == 1
        else f"not prunable, {len(names)} layers: {listed(names)}: {reason}"
        for reason, names in study.structure.skipped_by_reason.items()
    ]
    warning = study.sample_warning()
    return value, "\n".join([text, legend, *([warning] if warning else []), *skipped])


def _show_sensitivity(study: Study) -> Answer:
    found = sensitivity(study)
    value = {"shares": list(SHARES), "groups": {name: errors.tolist() for name, errors in found.items()}}
    rows = [[name, *(f"{error:.3g}" for error in errors)] for name, errors in found.items()]
    text = "estimated RMS error of the logits if this group alone keeps the given share (lower is better)\n"
    return value, text + table(["group", *(f"{share:.1%}" for share in SHARES)], rows)


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
        "claims": {name: estimators()[name].claim for name in names},
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
    lines = [table(["layer", *head], rows)]
    if norms:
        lines.append(
            table(["LayerNorm", "smallest norm seen"], [[name, f"{norm:.3g}"] for name, norm in norms.items()])
        )
    lines += [f"{name}: {estimators()[name].says}" for name in names]
    lines.append("Lower means less sensitive. RMS and 90% quantile hold for these samples only.")
    if any(upper.ranges for upper in study.certified.values()):
        lines.append("Certified bounds hold only while LayerNorm and attention stay in the ranges seen.")
    return value, "\n".join(lines)


def _about(study: Study, group: Group, eta: float) -> dict[str, Any]:
    """The summary of a group."""
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
        f"{name}: {group.size} components ({group.kind}); HiFi set at η = {eta:g}: {about['hifi_size']} components"
        f" with full compensation, {about['hifi_size_scalar']} with scalar compensation\n"
        f"read by {_layers(len(group.consumers))}: {', '.join(about['read_by'])}\n"
    )
    return value, text + table(["component", "fidelity", "elimination cost", "rank", "cumulative fidelity"], rows)
