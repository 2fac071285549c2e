"""``modhifi evaluate``."""

from __future__ import annotations

import argparse

import modhifi

from ..evaluation import Evaluation, forgetting_table, verdict
from ..progress import Progress
from ..text import number, percent
from ._common import data_arguments, moved_weights, named_data, plan_and_models, positive, samples_of
from ._table import Answer, table

HELP = "Measure accuracy or perplexity, closeness to the original network, size, FLOPs and latency before and after a plan."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN")
    data_arguments(parser, "test")
    parser.add_argument("--samples", type=positive, metavar="N", help="number of samples (default: all)")
    parser.add_argument(
        "--context", type=positive, metavar="N", help="perplexity: tokens per window (default: the model's context)"
    )
    parser.add_argument(
        "--stride", type=positive, metavar="N", help="perplexity: tokens between windows (default: half the context)"
    )
    moved_weights(parser, "plan")
    parser.add_argument("--device", default="auto")


def run(asked: argparse.Namespace, progress: Progress) -> Answer:
    plan, model, changed = plan_and_models(asked.plan, asked.weights, asked.device, progress)
    data = named_data(asked, plan.calibration, asked.samples)
    result = modhifi.evaluate(changed, data, model, context=asked.context, stride=asked.stride, progress=progress)
    return result.to_json(), _evaluation_text(result, samples_of(plan.model))


def _evaluation_text(e: Evaluation, counted: str) -> str:
    labelled, of_classes = e.accuracy is not None, e.agreement is not None
    quality = [["accuracy (higher is better)", percent(e.accuracy_before), percent(e.accuracy)]] if labelled else []
    if e.mean_iou is not None:
        quality.append(["mean IoU (higher is better)", percent(e.mean_iou_before), percent(e.mean_iou)])
    if e.perplexity is not None:
        counted = f"windows of {e.context} tokens, stride {e.stride}"
        quality = [
            ["perplexity (lower is better)", number(e.perplexity_before, 3), number(e.perplexity, 3)],
            ["top-1 next-token accuracy", percent(e.accuracy_before), percent(e.accuracy)],
            [
                "prefill throughput, tokens/s (higher is better)",
                number(e.prefill_tokens_per_second_before),
                number(e.prefill_tokens_per_second),
            ],
            [
                "decode throughput, tokens/s (higher is better)",
                number(e.decode_tokens_per_second_before, 1),
                number(e.decode_tokens_per_second, 1),
            ],
        ]
    rows = [
        *quality,
        *([["same answer as the original (higher is better)", "", percent(e.agreement)]] if of_classes else []),
        ["relative error of the logits (lower is better)", "", number(e.relative_error, 4)]
        if of_classes
        else ["relative error of the answer (lower is better)", "", number(e.relative_error, 4)],
        *([["KL divergence from the original, nats (lower is better)", "", number(e.kl, 4)]] if of_classes else []),
        ["parameters", number(e.params_before), number(e.params)],
        ["FLOPs (MACs)", number(e.flops_before), number(e.flops)],
        ["bytes of the weights", number(e.bytes_before), number(e.bytes)],
        [
            f"latency, ms ({e.device}, batch {e.latency_batch})",
            number(e.latency_ms_before, 2),
            number(e.latency_ms, 2),
        ],
    ]
    rows += [
        [f"accuracy on class {name}", percent(row.before), percent(row.after)] for name, row in e.per_class.items()
    ]
    text = table([f"{e.samples} {counted}", "original", "modified"], rows)
    if e.calibration_samples:
        text += (
            f"\n{number(e.calibration_samples)} of these {e.samples} samples are among those that the plan was made from;"
            " on others it may do worse"
        )
    return text if e.forget is None else f"{text}\n\n{_forgetting_text(e)}"


def _forgetting_text(e: Evaluation) -> str:
    measures = [[title, *map(percent, values)] for title, *values in forgetting_table(e)]
    text = table([f"forget {', '.join(e.forget or ())}", "original", "logit mask", "edited"], measures)
    return "\n".join([text, *verdict(e)])
