"""A run as a table and as a JSON value: every method, and each modality trained alone."""

from __future__ import annotations

from typing import Any

from ._methods import AGM, MSES, MSLR, OGMGE, Joint
from ._run import MeanSpread, Run

__all__ = ["TITLES", "in_words", "report", "rows"]

TITLES: dict[str, str] = {one.name: one.title for one in (Joint, AGM, OGMGE, MSLR, MSES)}
"""Method → its title in tables and figures."""


def rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table: test accuracies in % and competition strengths d, mean ± deviation over seeds."""
    names = run.modalities
    head = [
        "",
        "test accuracy, %",
        *(f"output of {name}, %" for name in names),
        *(f"d {name} (lower is better)" for name in names),
        "training, s",
    ]
    found = []
    for name in names:
        reference = run.reference(name)
        if reference is not None:
            found.append([f"{name} alone", _percent(reference), *[""] * (2 * len(names) + 1)])
    for method, measured in run.summary().items():
        mono, strength = (measured[what] for what in ("mono", "competition"))
        found.append(
            [
                TITLES[method],
                _percent(measured["accuracy"]),
                *(_percent(mono[name]) for name in names),
                *(_plus_minus(strength[name], 1, 3) for name in names),
                f"{measured['seconds']:.1f}",
            ]
        )
    return head, found


def _percent(value: MeanSpread) -> str:
    return _plus_minus(value, 100, 1)


def _plus_minus(value: MeanSpread, unit: float, digits: int) -> str:
    mean = f"{unit * value.mean:.{digits}f}"
    return mean if value.spread is None else f"{mean} ± {unit * value.spread:.{digits}f}"


def in_words(run: Run) -> str:
    """One line that describes data, network and settings."""
    s = run.settings
    degraded = "".join(f"; {name} keeps {share:.0%} of its PCA energy" for name, share in s.degrade.items())
    seeds = f"{s.seeds} seed{'s' * (s.seeds != 1)}"
    modulated = f", α = {s.alpha:g}" if "agm" in s.methods else ""
    normed = ", BatchNorm" if s.batch_norm else ""
    trained = f"{s.fusion.capitalize()} fusion{normed}, {seeds}, {s.epochs} epochs{modulated}"
    return f"{run.about} {run.samples['train']} training pairs{degraded}. {trained}."


def report(run: Run) -> dict[str, Any]:
    """One JSON value: settings, and the measurements per modality alone and per method, each with mean, spread and values."""
    alone = {name: run.reference(name) for name in run.modalities}

    def plain(value: Any) -> Any:
        if isinstance(value, MeanSpread):
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
