"""A run as one table and one JSON value: every method beside each modality alone."""

from __future__ import annotations

from typing import Any

from ._methods import AGM, MSES, MSLR, OGMGE, Joint
from ._run import Run, Spread

__all__ = ["TITLES", "in_words", "report", "rows"]

TITLES: dict[str, str] = {one.name: one.title for one in (Joint, AGM, OGMGE, MSLR, MSES)}
"""How methods are called in tables and figures."""


def rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: accuracies in per cent and competition strengths, mean ± deviation over seeds."""
    names = run.modalities
    head = [
        "",
        "test accuracy, %",
        *(f"{name} in it, %" for name in names),
        *(f"d {name}" for name in names),
        "seconds",
    ]
    found = []
    for name in names:
        reference = run.reference(name)
        if reference is not None:
            found.append([f"{name} alone", _percent(reference), *[""] * (2 * len(names) + 1)])
    for method, told in run.summary().items():
        mono, strength = (told[what] for what in ("mono", "competition"))
        found.append(
            [
                TITLES[method],
                _percent(told["accuracy"]),
                *(_percent(mono[name]) for name in names),
                *(_plus_minus(strength[name], 1, 3) for name in names),
                f"{told['seconds']:.1f}",
            ]
        )
    return head, found


def _percent(value: Spread) -> str:
    return _plus_minus(value, 100, 1)


def _plus_minus(value: Spread, unit: float, digits: int) -> str:
    mean = f"{unit * value.mean:.{digits}f}"
    return mean if value.spread is None else f"{mean} ± {unit * value.spread:.{digits}f}"


def in_words(run: Run) -> str:
    """What was trained on what, in one line."""
    s = run.settings
    degraded = "".join(f"; {name} keeps {share:.0%} of its PCA energy" for name, share in s.degrade.items())
    seeds = f"{s.seeds} seed{'s' * (s.seeds != 1)}"
    modulated = f", α = {s.alpha:g}" if "agm" in s.methods else ""
    normed = ", BatchNorm" if s.batch_norm else ""
    trained = f"{s.fusion.capitalize()} fusion{normed}, {seeds}, {s.epochs} epochs{modulated}"
    return f"{run.about} {run.samples['train']} training pairs{degraded}. {trained}."


def report(run: Run) -> dict[str, Any]:
    """One JSON value: settings, and per modality alone and per method what was measured, each with mean, spread and values."""
    alone = {name: run.reference(name) for name in run.modalities}

    def plain(value: Any) -> Any:
        if isinstance(value, Spread):
            return value.model_dump(mode="json")
        return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value

    return {
        "settings": run.settings.model_dump(mode="json"),
        "about": run.about,
        "modalities": list(run.modalities),
        "samples": run.samples,
        "rates": run.rates,
        "alone": plain({name: value for name, value in alone.items() if value is not None}),
        "methods": plain(run.summary()),
    }
