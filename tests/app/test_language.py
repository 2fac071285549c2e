"""The pages with a language model: perplexity in place of accuracy, and one line where something does not apply."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import figures
from app.figures import TradeOff
from app.library import Library
from app.report import report
from app.selection import Choice, LabelledData, Source
from app.store import Store
from modhifi.pruning import pruning_methods

LANGUAGE = Source(model="text-llama", data="text:kjv", samples=24)
MAIN = Path(__file__).parents[2] / "app" / "main.py"


@pytest.fixture
def analysed(home: Path) -> Path:
    """A cache with a study of the language model that ships, and one measured plan."""
    library = Library(Store(home))
    job = library.tasks.analyse(LANGUAGE)
    assert job.wait(120)
    assert job.state == "done", job.error
    choice = Choice.of(pruning_methods(language=True)["width-none"], library.queries.study(LANGUAGE), "params", 0.8)
    data = LabelledData(data="text:kjv", split="test", samples=2)
    job = library.tasks.measure(LANGUAGE, choice, data)
    assert job.wait(120)
    assert job.state == "done", job.error
    return home


def words(app: AppTest) -> str:
    parts = [*app.markdown, *app.caption, *app.info, *app.error, *app.subheader]
    return "\n".join(str(part.value) for part in parts) + "\n".join(metric.label for metric in app.metric)


def test_every_page(analysed: Path) -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.query_params["study"] = LANGUAGE.label
    app.run()
    text = {}
    for page in ("model", "importance", "bounds", "prune", "forget", "export"):
        app.switch_page(f"../pages/{page}.py")
        app.run()
        app.run()
        assert not app.exception, (page, app.exception)
        assert not app.error, (page, app.error)
        text[page] = words(app)
        if page == "prune":
            (table,) = [frame.value for frame in app.dataframe if "Perplexity" in frame.value]
            plan, dense = table.to_dict("records")
            assert plan["Perplexity"] > dense["Perplexity"] > 1
            assert (dense["Plan"], dense["× original"], dense["Parameters"]) == ("Original model", 1, 100)
            assert "Accuracy" not in table
    assert "Vocabulary" in text["model"]
    assert "no classes and no images" in text["importance"]
    assert "no classes to forget" in text["forget"]
    assert "Perplexity" in text["prune"]
    assert "Perplexity" in text["export"]
    library = Library(Store(analysed))
    (point,) = library.store.points(LANGUAGE.id)
    page = report(library, LANGUAGE, point)
    assert f"{point.evaluation['perplexity']:.3f}" in page
    assert page.count("Plotly.newPlot") == 2
    assert "ccuracy" not in page.replace(page[page.index("<script") : page.rindex("</script>")], "")


def test_the_chart_has_perplexity_on_its_axis() -> None:
    points = [TradeOff("a", "one", 0.8, 2.5, ""), TradeOff("b", "two", 0.7, 3.0, "")]
    figure = figures.trade_off(points, 2.4, 0.75, "a", "parameters", figures.PERPLEXITY)
    assert figure.layout.yaxis.title.text == "perplexity"
    low, high = figure.layout.yaxis.range
    assert 1 <= low < 2.4
    assert high > 3.0
    drawn = [y for trace in figure.data for y in trace.y]
    assert sorted(drawn) == [2.4, 2.5, 3.0]
    assert all("perplexity %{y:.3f}<" in trace.hovertemplate for trace in figure.data)
