"""A report of hostile names, opened from a file: it draws its charts, runs nothing else, and asks for nothing."""

import re
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser

import modhifi
from app import figures
from app.report import as_html
from modhifi.plan import GroupPlan, Plan, Settings

SCRIPT = "<img src=x onerror=hit()><script>hit()</script>"
LINK = '<a href="https://elsewhere.example">open</a>'
CLASSES = [SCRIPT, LINK, "</script><script>hit()</script>", "<b>bold</b>&lt;i&gt;", "%{x}"]


def hostile() -> str:
    known = modhifi.load_model("digits-resnet20", device="cpu").ref
    model = known.model_copy(update={"spec": SCRIPT, "fingerprint": SCRIPT, "classes": tuple(CLASSES)})
    data = modhifi.load_data("digits").ref.model_copy(update={"spec": LINK, "split": SCRIPT})
    plan = Plan(
        kind="prune",
        model=model,
        calibration=data,
        settings=Settings(remain=0.5, score=SCRIPT, allocation="global"),
        groups={SCRIPT: GroupPlan(keep=[0], total=2)},
        note=f"{SCRIPT}{LINK}",
    )
    counts = np.eye(len(CLASSES)) + 1
    by_class = {name: {"before": 1.0, "after": 0.5} for name in CLASSES}
    drawn = {
        "Confusion": figures.confusion(counts, CLASSES),
        SCRIPT: figures.per_class(by_class, CLASSES[:1]),
        "Kept": figures.allocation(CLASSES, [1] * len(CLASSES), [2] * len(CLASSES)),
    }
    return modhifi.export_report(plan, charts=as_html(drawn), commands=SCRIPT)


def test_nothing_in_a_report_runs_but_its_charts(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(hostile(), encoding="utf-8")
    page = chromium.new_page()
    requests: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: refused.append(message.text))
    page.add_init_script("window.hits = 0; window.hit = () => { window.hits += 1; }")
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.plotly-graph-div .main-svg .xtick').length > 0")
    assert page.locator(".plotly-graph-div").count() == 3
    assert page.evaluate(
        "[...document.querySelectorAll('.plotly-graph-div')].every(one => one.querySelector('.main-svg'))"
    )
    assert page.locator(".bars .point").count() == 3 * len(CLASSES)
    assert page.evaluate("window.hits") == 0
    assert page.locator("a, img, iframe").count() == 0
    assert page.get_by_text(SCRIPT, exact=True).count() >= 2, "shown as it is written"
    assert page.locator(".ytick").filter(has_text="<b>bold</b>&lt;i&gt;").count() == 1
    assert [url for url in requests if url != path.as_uri()] == []
    assert refused == []
    page.evaluate("() => { const s = document.createElement('script'); s.text = 'hit()'; document.body.append(s); }")
    page.evaluate("() => { document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"hit()\">'); }")
    page.wait_for_function("document.images.length === 1 && document.images[0].complete")
    assert page.evaluate("window.hits") == 0
    assert len([text for text in refused if re.search("Content Security Policy", text)]) == 2, refused
    page.close()
