"""``modhifi prune``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import modhifi

from ..errors import UserError
from ..lipschitz import estimators
from ..loading import reload
from ..plan import Plan
from ..progress import Progress
from ..pruning import latency_table, scores
from ..specs import AllocationRule, Compensation, PruningSpec
from ..study import Study
from ..text import number
from ._common import Parser, budget_arguments, count, out_plan, positive
from ._table import Answer, table

HELP = "ModHiFi-P: decide which components to keep and write a plan."
# What the published method takes besides the study and the plan.
_PUBLISHED = ("flops", "params", "published", "note", "json", "call")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    budget_arguments(parser, float, "R", "")
    parser.add_argument(
        "--latency-batch",
        type=positive,
        default=1,
        metavar="N",
        help="samples per forward pass when latency is measured",
    )
    with_labels = " and ".join(score.name for score in scores() if score.needs_labels)
    parser.add_argument(
        "--score",
        choices=[score.name for score in scores()],
        default="greedy",
        help=f"ranks the components of a group (default: greedy); {with_labels} use labels",
    )
    parser.add_argument(
        "--allocation",
        choices=get_args(AllocationRule),
        help="how the budget is allocated across groups (default: global; for language models with identical blocks"
        " width, equal widths in every block, which transformers opens on its own)",
    )
    parser.add_argument(
        "--constants",
        choices=[*estimators(), "none"],
        default="directional",
        help="the study's Lipschitz constants that weight layers in global allocation (default: directional)",
    )
    parser.add_argument(
        "--device", default="auto", help="where the network runs if needed; for language models also map (accelerate)"
    )
    parser.add_argument("--compensate", choices=get_args(Compensation), default="sequential")
    parser.add_argument(
        "--no-drift", action="store_true", help="sequential: do not correct the drift of residual streams"
    )
    parser.add_argument(
        "--no-rectified", action="store_true", help="sequential: also fit the outputs that a ReLU sets to zero"
    )
    parser.add_argument("--raw", action="store_true", help="use raw instead of centred moments (Def. 3.1 as written)")
    parser.add_argument(
        "--recalibrate-bn", action="store_true", help="re-estimate BatchNorm statistics on the calibration images"
    )
    parser.add_argument(
        "--multiple", type=positive, default=1, metavar="N", help="keep multiples of N channels (8 suits tensor cores)"
    )
    parser.add_argument(
        "--keep", type=count, action="append", default=[], metavar="GROUP=COUNT", help="set a group's size by hand"
    )
    parser.add_argument(
        "--floor", type=count, action="append", default=[], metavar="GROUP=COUNT", help="keep at least this many"
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="use ModHiFi-P as published (Alg. 1); takes only a FLOPs or parameter budget",
    )
    parser.add_argument("--note", default="", help="a note to keep in the plan")
    out_plan(parser)


def _spec(asked: argparse.Namespace) -> PruningSpec:
    return PruningSpec.of(
        flops=asked.flops,
        params=asked.params,
        latency=asked.latency,
        score=asked.score,
        allocation=asked.allocation,
        constants=asked.constants,
        compensate=asked.compensate,
        centred=False if asked.raw else None,
        drift=not asked.no_drift,
        rectified=not asked.no_rectified,
        recalibrate_bn=asked.recalibrate_bn,
        multiple=asked.multiple,
        overrides=dict(asked.keep),
        floors=dict(asked.floor),
    )


def _only_a_budget(asked: argparse.Namespace) -> None:
    """Raises `UserError` for an option that the published method does not take."""
    parser = Parser()
    arguments(parser)
    usual = vars(parser.parse_args([asked.study, "--out", asked.out]))
    for name, value in usual.items():
        if name not in _PUBLISHED and getattr(asked, name) != value:
            raise UserError(f"--published takes only a budget; omit --{name.replace('_', '-')}")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    Plan.claim(asked.out)
    study, spec = Study.load(asked.study), _spec(asked)
    if spec.budget == "manual" and not spec.overrides:
        raise UserError("set a budget: --flops R, --params R or --latency R, or --keep GROUP=COUNT")
    if asked.published:
        _only_a_budget(asked)
        plan = modhifi.pruning.published(study, flops=asked.flops, params=asked.params, progress=progress)
    else:
        model = table_ = None
        if spec.budget == "latency":
            model = reload(study.model, device=asked.device, progress=progress)
            path = Path(asked.study) / "latency.json"
            table_ = latency_table(path, model, study.structure, batch=asked.latency_batch, progress=progress)
        plan = modhifi.prune(
            study,
            spec,
            latencies=table_,
            latency_batch=asked.latency_batch,
            model=model,
            device=asked.device,
            partial=f"{asked.out}.partial",
            progress=progress,
        )
    plan.note = asked.note
    plan.save(asked.out)
    value = {
        "plan": asked.out,
        "predicted": plan.predicted,
        "kept": {name: len(group.keep) for name, group in plan.groups.items()},
        "settings": plan.settings.model_dump(mode="json"),
    }
    return value, f"{_text(plan)}\nwritten to {asked.out}"


def _range(predicted: Mapping[str, float], what: str) -> str:
    """``12.3% (9.8% to 15.4%)``."""
    return f"{predicted[what]:.1%} ({predicted[f'{what}_low']:.1%} to {predicted[f'{what}_high']:.1%})"


def _text(plan: Plan) -> str:
    p = plan.predicted
    rows = [[name, f"{len(group.keep)} of {group.total}"] for name, group in plan.groups.items()]
    lines = [
        table(["group", "kept"], rows),
        f"FLOPs {number(p['flops_before'])} → {number(p['flops'])} ({p['flops'] / p['flops_before']:.2%}),"
        f" parameters {number(p['params_before'])} → {number(p['params'])} ({p['params'] / p['params_before']:.2%})",
    ]
    if "bound" in p:
        lines.append(
            f"predicted fidelity {p['fidelity']:.4f} (higher is better), estimated bound on the RMS error of the logits"
            f" {p['bound']:.3g} (lower is better)"
        )
    if "relative_error" in p:
        lines.append(
            f"predicted relative error of the output {_range(p, 'relative_error')} (lower is better)"
            + (f", agreement {_range(p, 'agreement')} (higher is better)" if "agreement" in p else "")
        )
    if "latency_ms" in p:
        share = p["latency_ms"] / p["latency_ms_before"]
        lines.append(
            f"latency {p['latency_ms_before']:.2f} → {p['latency_ms']:.2f} ms ({share:.1%}), measured in turns on this"
            " machine"
        )
    if plan.settings.ridges:
        low, high = min(plan.settings.ridges.values()), max(plan.settings.ridges.values())
        lines.append(f"ridge {low:.1g} to {high:.1g} of the mean eigenvalue (per layer in the plan)")
    return "\n".join(lines)
