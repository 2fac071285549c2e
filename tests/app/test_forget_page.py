"""The Forget page."""

from pathlib import Path

from app.selection import DEFAULT
from app.session import library
from modhifi.evaluation import Evaluation, verdict

from .paging import finish, metric, open_page, press, settled, words


def test_forget_shows_how_it_is_judged(filled: Path) -> None:
    app = open_page("forget")
    (pills,) = [p for p in app.button_group if p.key == "classes"]
    pills.set_value(["3"])
    app = settled(app)
    press(app, "Forget")
    app = finish(app, "forget")
    for label in ("Forget accuracy", "Retain accuracy", "Linear probe", "Membership inference", "BN recall"):
        assert metric(app, label)
    assert float(metric(app, "Forget accuracy").rstrip("%")) < float(metric(app, "Retain accuracy").rstrip("%"))
    said = words(app)
    (point,) = library().store.points(DEFAULT.id)
    sentences = verdict(Evaluation.model_validate(point.evaluation))
    assert len(sentences) >= 4
    for part in ("Class-specific components", "most specific to 3", "Verdict", "Relearning", *sentences):
        assert part in said
    assert list(app.table[0].value.columns) == ["Original", "Logit mask", "Edited"]
    export = open_page("export")
    assert "unlearn study --forget 3" in export.code[0].value
    assert "--method erase" in export.code[0].value
