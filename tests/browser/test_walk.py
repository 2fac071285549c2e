"""The main job in a real browser, from a first visit to a plan that the command line measures the same."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, expect

import modhifi
from app.selection import DEFAULT
from app.store import Store
from modhifi.cli import main
from modhifi.evaluation import Evaluation, verdict
from modhifi.lipschitz import estimators
from tests.few import few_digits

from .conftest import ROOT, Server, Visitor, serving

PAGES = ["", "importance", "bounds", "prune", "forget", "modalities", "export"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With an empty cache and few digits."""
    with serving(tmp_path_factory.mktemp("elsewhere"), [str(ROOT / "tests" / "few.py")]) as found:
        yield found


def test_the_walk_of_a_first_visit_ends_in_the_same_number(
    visit: Callable[..., Visitor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    someone, reader = visit(), visit()
    page = someone.page
    page.goto(someone.url)
    page.get_by_text("Not prunable").wait_for()
    someone.settle()

    someone.go("Importance")
    someone.see("are enough for η = 0.80 in every group")
    someone.see("All 10 classes, as predicted for")

    someone.go("Prune")
    assert 48 <= float(page.locator("[data-testid=stMetricValue]").first.inner_text().rstrip("%")) <= 50.01
    someone.press("Measure")
    page.get_by_role("combobox", name="Current plan").wait_for()
    someone.settle()
    shown = someone.metric("Accuracy")

    someone.go("Export")
    assert someone.metric("Accuracy") == shown
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the plan").click()
    plan = tmp_path / "plan.zip"
    download.value.save_as(plan)
    page.get_by_role("button", name="ONNX").click()
    someone.settle()
    someone.press("Build the network")
    page.get_by_role("button", name="Download the network").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the network").click()
    download.value.save_as(tmp_path / "network.zip")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    download.value.save_as(tmp_path / "report.html")

    with zipfile.ZipFile(tmp_path / "network.zip") as archive:
        archive.extractall(tmp_path)
    (folder,) = {Path(name).parts[0] for name in archive.namelist()}
    assert any(name.endswith(".safetensors") for name in archive.namelist())
    with few_digits():
        assert main(["evaluate", str(plan), "--data", "digits", "--split", "test", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        data = modhifi.load_data("digits", split="test")
        again = modhifi.evaluate(modhifi.load_model(str(tmp_path / folder)), data, latency=False)
        by_onnx = _accuracy_of_onnx(tmp_path / folder / "model.onnx", data)
    assert result["samples"] == len(data)
    assert result["accuracy"] >= 0.9
    for accuracy in (result["accuracy"], again.accuracy, by_onnx):
        assert f"{100 * accuracy:.2f}%" == shown, "to the sample"
    assert read_report(reader, tmp_path / "report.html") == 5


def read_report(reader: Visitor, path: Path) -> int:
    """Opens a report without any network; how many charts it has drawn."""
    reader.page.context.set_offline(True)
    reader.url = path.as_uri()  # a request for anything else is an error
    reader.page.goto(reader.url)
    reader.page.get_by_text("python -m modhifi evaluate plan.json").wait_for()
    reader.page.wait_for_function(
        "[...document.querySelectorAll('.plotly-graph-div')].every(e => e.querySelector('.xaxislayer-above'))"
    )
    return reader.page.locator(".plotly-graph-div").count()


def _accuracy_of_onnx(path: Path, data: modhifi.Data) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    right = 0
    for images, labels in data.batches(modhifi.load_model(device="cpu").input):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        right += int((logits.argmax(1) == labels.numpy()).sum())
    return right / len(data)


def test_own_checkpoint_and_images(visit: Callable[..., Visitor], server: Server, tmp_path: Path) -> None:
    """Sent from the browser, analysed, looked into, pruned; a checkpoint of another network is explained."""
    data = modhifi.load_data("digits", split="test").take(120, 0)
    archive = tmp_path / "my digits.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number, (index, label) in enumerate(zip(data.order, data.targets.tolist(), strict=True)):
            buffer = io.BytesIO()
            data.read(index).save(buffer, "PNG")
            packed.writestr(f"scans/{label}/{number}.png", buffer.getvalue())
    someone = visit()
    someone.open()
    someone.see("Not prunable")
    page = someone.page
    page.get_by_text("Choose another network or other images").click()
    checkpoint, images = page.locator("input[type=file]").nth(0), page.locator("input[type=file]").nth(1)
    checkpoint.set_input_files(ROOT / "assets" / "cifar10-vgg8.safetensors")
    images.set_input_files(archive)
    page.get_by_text("my digits.zip").wait_for()
    someone.press("Analyse")
    someone.see("is not a checkpoint of digits-resnet20")
    someone.see("missing (")
    page.get_by_text("Choose another network or other images").click()  # it has folded when it was sent
    page.locator("input[type=file]").nth(0).set_input_files(ROOT / "assets" / "digits-resnet20.safetensors")
    page.get_by_text("1.1MB").wait_for()  # long names are shortened
    page.wait_for_timeout(1000)  # until it has arrived; the images are there already
    someone.press("Analyse")
    someone.see("12 groups, 3 of them residual streams")
    # The folder is called after the images' own; the checkpoint was sent too, and is not the one that comes with the network.
    expect(page.get_by_role("combobox", name="Study")).to_have_value(re.compile(r"\(.+\.safetensors\) · scans"))
    someone.go("Importance")
    someone.press("Show top-activating images")
    someone.see("integrated gradients")
    assert page.locator("[data-testid=stImage] img").count() == 16
    someone.go("Prune")
    someone.press("Measure")
    someone.see("Note on this plan")
    assert float(someone.metric("Accuracy").rstrip("%")) > 90


def test_forget_two_classes_and_read_the_report(visit: Callable[..., Visitor], server: Server, tmp_path: Path) -> None:
    someone = visit()
    someone.open("forget")
    page = someone.page
    page.get_by_text("Classes to forget").wait_for()
    for name in ("3", "8"):
        page.get_by_role("button", name=name, exact=True).click()
        someone.settle()
    someone.press("Forget")
    someone.see("Confusion matrix, edited network")
    forget, retain = (float(someone.metric(f"{which} accuracy").rstrip("%")) for which in ("Forget", "Retain"))
    assert forget < 50 < retain
    for label in ("Linear probe", "Membership inference", "BN recall"):
        assert someone.metric(label)
    (point,) = Store(server.home).points(DEFAULT.id, "unlearn")
    sentences = verdict(Evaluation.model_validate(point.evaluation))
    assert len(sentences) >= 4
    for text in (
        "Verdict",
        "Class-specific components",
        "Search for the strength",
        *sentences,
    ):
        someone.see(text)
    someone.go("Export")
    expect(page.get_by_role("combobox", name="Current plan")).to_have_value("Without 3, 8")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    download.value.save_as(tmp_path / "report.html")
    reader = visit("dark")
    assert read_report(reader, tmp_path / "report.html") == 5
    reader.page.get_by_role("heading", name="digits-resnet20 without 3, 8").wait_for()
    for sentence in sentences:
        reader.page.get_by_text(sentence, exact=True).wait_for()


def test_bounds_walk(visit: Callable[..., Visitor]) -> None:
    someone = visit()
    someone.open("bounds")
    someone.see(estimators()["jacobian"].says)
    page = someone.page
    page.get_by_role("button", name="More", exact=True).click()
    someone.press("Estimate")
    page.get_by_role("button", name="Operator norms").click()
    someone.see(estimators()["certified"].says)
    someone.press("Measure")
    someone.see("Layer by layer")
    someone.see("times the measured error")
    someone.see("With constants from 96 calibration samples instead")
    # The last of the first estimator's points: the layer that writes the logits, which reads the last stream.
    first = page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").first.locator(".points path").last
    first.evaluate("point => point.scrollIntoView({block: 'center'})")  # Measure, below it, has scrolled the page
    page.wait_for_timeout(300)
    box = first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 4, y - 4)
    page.mouse.move(x, y)
    assert "linear" in (page.locator(".hoverlayer").first.text_content() or "")
    page.mouse.click(x, y)
    someone.see("All groups")
    expect(page.get_by_role("combobox", name="Group in focus")).to_have_value("layer3.0.conv2")


@pytest.mark.parametrize("path", PAGES)
def test_every_control_answers(visit: Callable[..., Visitor], path: str) -> None:
    """Everything that chooses something is used once; what starts work has its own walk above."""
    someone = visit().ready(path)
    page, main = someone.page, someone.page.get_by_test_id("stMain")
    used = 0

    def each(role: str, use: Callable[[Locator], None], inside: Locator = main) -> None:
        nonlocal used
        for number in range(inside.get_by_role(role).count()):
            control = inside.get_by_role(role).nth(number)
            if control.is_visible() and control.is_enabled():
                use(control)
                someone.settle()
                used += 1

    def choose(box: Locator) -> None:
        if box.get_attribute("aria-label") != "Study":  # another one would change the page
            box.focus()
            for key in ("ArrowDown", "ArrowDown", "Enter", "Escape"):
                page.keyboard.press(key)

    def choices(inside: Locator) -> None:
        for role in ("tab", "radio"):
            each(role, lambda control: control.click(), inside)
        for role, key in (("switch", "Space"), ("slider", "ArrowRight"), ("spinbutton", "ArrowUp"), ("textbox", "End")):
            each(role, lambda control, key=key: control.press(key), inside)
        each("combobox", choose, inside)

    for summary in main.locator("summary").all():
        summary.click()
        someone.settle()
    choices(main)
    for popover in main.get_by_test_id("stPopoverButton").filter(visible=True).all():
        popover.click()
        someone.settle()
        choices(page.get_by_test_id("stPopoverBody"))
        page.keyboard.press("Escape")
        someone.settle()
    assert used > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_its_window_and_is_accessible(visit: Callable[..., Visitor], scheme: str) -> None:
    """With the plans and bounds of the walks above in them."""
    someone = visit(scheme)
    for path in PAGES:
        someone.ready(path)
        width = someone.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1280, f"{path or 'model'} is {width} pixels wide"
        someone.shoot(f"{path or 'model'}-{scheme}")
        if not path:
            someone.page.get_by_text("Choose another network or other images").click()
            someone.settle()
        found = [
            one for one in Axe().run(someone.page).response["violations"] if one["impact"] in ("serious", "critical")
        ]
        assert found == [], f"{path or 'model'}: {[(one['id'], one['nodes'][0]['html']) for one in found]}"
