"""The Modalities page in every state: nothing, running, failed, cancelled, done; and its figures."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

import modhifi
from app import figures
from app import modalities as page
from app.session import library
from modhifi.errors import UserError
from modhifi.multimodal import MeanSpread, Run, Settings, train
from modhifi.progress import Progress

from .paging import open_page, press, settled, words

KEY = "multimodal "


@pytest.fixture(scope="module")
def tiny() -> Run:
    return train(Settings(methods=("joint", "agm", "ogm-ge"), seeds=2, epochs=2, pairs=64))


@pytest.fixture(autouse=True)
def no_study(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache; the page needs no study, and none is made."""

    def analyze(*_: Any, **__: Any) -> None:
        raise UserError("no study in this test")

    monkeypatch.setattr(modhifi, "analyze", analyze)
    yield
    page._snapshots().clear()


def waited(state: str) -> None:
    job = library().jobs.latest(KEY)
    assert job is not None
    assert job.wait(60)
    assert job.state == state, job.error


def small(app: AppTest) -> AppTest:
    """Asks for little."""
    app.number_input(key="epochs").set_value(1)
    app.number_input(key="seeds").set_value(1)
    app.number_input(key="pairs").set_value(64)
    return settled(app)


def test_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "EXAMPLE", tmp_path / "none.json")
    app = open_page("modalities")
    assert "No runs yet. Choose the settings, then press *Train*." in words(app)
    assert [b.disabled for b in app.button if b.label == "Train"] == [False]


def test_the_example_that_ships() -> None:
    run = Run.load(page.EXAMPLE)
    assert run.finished
    assert run.settings.seeds >= 3
    assert {"joint", "agm"} <= set(run.summary())
    assert page.EXAMPLE.stat().st_size < 200_000
    app = open_page("modalities")
    assert app.selectbox(key="run").value.startswith("Example: ")
    shown = {metric.label: metric.value for metric in app.metric}
    summary = run.summary()
    assert shown["AGM"] == f"{100 * summary['agm']['accuracy'].mean:.1f}%"
    assert shown["Joint"] == f"{100 * summary['joint']['accuracy'].mean:.1f}%"
    assert "Trained jointly, the model relies mainly on" in words(app)
    assert len(app.get("plotly_chart")) == 5
    (table,) = app.dataframe
    assert list(table.value["Trained"])[:3] == [f"{name} alone" for name in run.modalities] + ["Joint"]


def test_running_then_cancelled(monkeypatch: pytest.MonkeyPatch, tiny: Run) -> None:
    end, told = threading.Event(), threading.Event()

    def held(settings: Settings, out: Path, watch: Any, progress: Progress) -> None:
        watch(tiny.model_copy(update={"finished": False}))
        told.set()
        for done in range(600):
            progress(done, 600, "AGM, seed 1 of 2")
            if end.wait(0.1):
                return

    monkeypatch.setattr(page, "train", held)
    try:
        app = press(open_page("modalities"), "Train")
        assert told.wait(60)
        app = settled(app)
        assert "OGM-GE, epoch 2" in words(app), "the training that goes on"
        assert len(app.get("plotly_chart")) == 7
        press(app, "Cancel")
        waited("cancelled")
        app = settled(app)
        assert "cancelled." in words(app)
        assert len(app.get("plotly_chart")) == 5
        assert not list(library().store.root.glob("multimodal/*")), "nothing is half-written"
    finally:
        end.set()


def test_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("modalities")
    app.text_input(key="recordings").set_value("/nowhere/at/all")
    app = press(settled(app), "Train")
    waited("error")
    app = settled(app)
    (error,) = (e.value for e in app.error if "nowhere" in e.value)
    assert error.startswith("no /nowhere/at/all/train.parquet; name a folder")
    assert "Traceback" not in words(app)


def test_done_is_shown_and_kept() -> None:
    app = press(small(open_page("modalities")), "Train")
    waited("done")
    app = settled(app)
    assert app.selectbox(key="run").value == "Two views of the digits, early fusion, Joint, AGM, 1 seed"
    (folder,) = library().store.root.glob("multimodal/*")
    run = Run.load(folder)
    assert run.settings.epochs == 1
    assert f"{100 * run.of('agm')[0].accuracy:.1f}%" in {metric.value for metric in app.metric}
    assert "64 training pairs" in words(app)
    again = open_page("modalities")
    assert again.selectbox(key="run").value == app.selectbox(key="run").value, "and the next visitor finds it"
    first = (folder / "run.json").stat().st_mtime_ns
    press(small(again), "Train")
    waited("done")
    assert (folder / "run.json").stat().st_mtime_ns > first, "asked for again, it is trained again"


def test_ogm_ge_is_offered_in_late_fusion_only() -> None:
    app = open_page("modalities")
    early = next(g for g in app.button_group if g.label == "Methods")
    assert "OGM-GE" not in str(early.options)
    app.button_group(key="fusion").set_value("late")
    app = settled(app)
    late = next(g for g in app.button_group if g.label == "Methods")
    assert "OGM-GE" in str(late.options)
    late.set_value([])
    app = settled(app)
    assert "name at least one method" in words(app)
    assert [b.disabled for b in app.button if b.label == "Train"] == [True]


# Figures


def names(figure: go.Figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.showlegend is not False]


def test_every_figure_is_whole(tiny: Run) -> None:
    begun = tiny.model_copy(update={"outcomes": [], "alone": [], "finished": False})
    first = tiny.outcomes[0].model_copy(update={"accuracy": None, "history": tiny.outcomes[0].history[:1]})
    for run in (tiny, begun, tiny.model_copy(update={"outcomes": [first], "finished": False})):
        for figure in (
            figures.training(run, "joint"),
            figures.coefficients(run, "joint"),
            figures.accuracies(run),
            figures.modality_accuracies(run),
            figures.competition(run),
        ):
            json.loads(figure.to_json())
            assert figure.layout.yaxis.title.text
            assert figure.layout.height <= 400
            assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_curves_are_means_with_the_range_behind(tiny: Run) -> None:
    figure = figures.training(tiny, "agm")
    assert names(figure) == ["joint output", "left", "right"]
    (left,) = (trace for trace in figure.data if trace.name == "left")
    (behind,) = (trace for trace in figure.data if trace.name == "left, all seeds")
    one, two = ([100 * epoch.mono["left"] for epoch in run.history] for run in tiny.of("agm"))
    assert left.x == (1, 2)
    assert left.y == pytest.approx([(a + b) / 2 for a, b in zip(one, two, strict=True)])
    assert behind.y == pytest.approx([*np.maximum(one, two), *np.minimum(one, two)[::-1]])
    kappa = figures.coefficients(tiny, "joint")
    assert {y for trace in kappa.data for y in trace.y} == {1.0}
    assert len(kappa.layout.shapes) == 1


def test_bars_are_the_summary(tiny: Run) -> None:
    summary = tiny.summary()
    bars, left, right = figures.accuracies(tiny).data
    assert bars.x == ("Joint", "AGM", "OGM-GE")
    assert bars.y == pytest.approx([100 * told["accuracy"].mean for told in summary.values()])
    assert bars.error_y.array == pytest.approx([100 * told["accuracy"].spread for told in summary.values()])
    alone = tiny.reference("left")
    assert alone is not None
    assert set(left.y) == {100 * alone.mean}
    assert left.line.dash != right.line.dash
    strength = figures.competition(tiny).data
    assert strength[1].name == "right"
    assert strength[1].y == pytest.approx([told["competition"]["right"].mean for told in summary.values()])
    together = figures.modality_accuracies(tiny).data[0]
    assert together.x[:2] == ("alone", "in Joint")
    assert together.y[2] == pytest.approx(100 * summary["agm"]["mono"]["left"].mean)


def test_what_the_numbers_say(tiny: Run) -> None:
    def run(joint: float, left: float, right: float, d: float) -> Run:
        def outcome(method: str, accuracy: float, mono: dict[str, float], strength: float) -> Any:
            one = next(o for o in tiny.outcomes if o.method == method)
            return one.model_copy(
                update={"accuracy": accuracy, "mono": mono, "competition": {"left": strength, "right": 0.1}}
            )

        return tiny.model_copy(
            update={
                "outcomes": [
                    outcome("joint", joint, {"left": left, "right": right}, d),
                    outcome("agm", 0.9, {"left": 0.66, "right": 0.7}, 0.25),
                ]
            }
        )

    best = max(MeanSpread.of([0.0]).mean, *(one.mean for m in ("left", "right") if (one := tiny.reference(m))))
    said = page.summary_of(run(best - 0.05, 0.2, 0.8, 0.5))
    assert "relies mainly on **right**: the right output alone reaches 80.0% accuracy, the left output 20.0%" in said
    assert "the modalities compete" in said
    assert "With AGM the left output reaches 66.0%" in said
    assert "competition strength changes from 0.50 to 0.25 (lower is better)" in said
    assert "compete" not in page.summary_of(run(0.99, 0.9, 0.3, 0.5)).replace("competition", "")
