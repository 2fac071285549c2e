"""The calls about modality balance: ``multimodal train`` and ``multimodal report``."""

from __future__ import annotations

import argparse

from ..multimodal import METHODS, Run, Settings, in_words, report, rows, train
from ..progress import Progress
from ._table import Answer, table

__all__ = ["multimodal"]


def multimodal(asked: argparse.Namespace, progress: Progress) -> Answer:
    if asked.do == "report":
        return _told(Run.load(asked.run), asked.run)
    methods = asked.method
    if methods == ["all"]:
        methods = [name for name in METHODS if name != "ogm-ge" or asked.fusion == "late"]
    settings = Settings.of(
        data=asked.data,
        fusion=asked.fusion,
        methods=tuple(methods),
        seeds=asked.seeds,
        epochs=asked.epochs,
        pairs=asked.pairs,
        degrade=dict(asked.degrade),
        alpha=asked.alpha,
        ogm_alpha=asked.ogm_alpha,
        patience=asked.patience,
        batch_norm=asked.batch_norm,
        rate=asked.rate,
        batch=asked.batch,
        decay=asked.weight_decay,
    )
    value, text = _told(train(settings, out=asked.out, device=asked.device, progress=progress), asked.out)
    return value, f"{text}\nwritten to {asked.out}"


def _told(run: Run, path: str) -> Answer:
    return {"run": path} | report(run), f"{in_words(run)}\n\n{table(*rows(run))}"
