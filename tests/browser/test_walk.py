"""The main job in a real browser, from a first visit to a plan that the command line measures the same."""

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import modhifi

from .conftest import ROOT, Server, Visitor


def test_first_visit_is_ready_soon_and_the_walk_ends_in_the_same_number(
    visit: Callable[..., Visitor], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    someone = visit()
    page = someone.page
    begin = time.monotonic()
    page.goto(server.url)
    page.get_by_text("Left whole").wait_for(timeout=300_000)
    seconds = time.monotonic() - begin
    with capsys.disabled():
        sys.stdout.write(f"\nfirst visit to the default's study: {seconds:.1f} s\n")
    assert seconds < 200, "20 s are promised on two quiet cores; this machine may be busy"
    someone.settle()

    someone.go("Importance")
    someone.see("reach η = 0.80 in every group")
    someone.see("All 10 classes")

    someone.go("Prune")
    assert 48 <= float(page.locator("[data-testid=stMetricValue]").first.inner_text().rstrip("%")) <= 50.01
    someone.press("Measure")
    page.get_by_role("combobox", name="Current plan").wait_for(timeout=300_000)
    someone.settle()
    shown = someone.metric("Accuracy")

    someone.go("Export")
    assert someone.metric("Accuracy") == shown
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the plan").click()
    plan = tmp_path / "plan.zip"
    download.value.save_as(plan)
    someone.press("Build the network")
    page.get_by_role("button", name="Download the network").wait_for(timeout=300_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the network").click()
    download.value.save_as(tmp_path / "network.zip")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    download.value.save_as(tmp_path / "report.html")

    result = _modhifi("evaluate", str(plan), "--data", "digits", "--split", "test", "--json", cwd=tmp_path)
    assert f"{100 * result['accuracy']:.2f}%" == shown, "to the sample"
    assert result["samples"] == 500
    assert result["accuracy"] >= 0.97

    with zipfile.ZipFile(tmp_path / "network.zip") as archive:
        archive.extractall(tmp_path)
    (folder,) = {Path(name).parts[0] for name in archive.namelist()}
    assert any(name.endswith(".safetensors") for name in archive.namelist())
    again = _python(
        "import sys, modhifi; m = modhifi.load_model(sys.argv[1]); d = modhifi.load_data('digits', split='test');"
        "print(modhifi.evaluate(m, d, latency=False).accuracy)",
        str(tmp_path / folder),
    )
    assert f"{100 * float(again):.2f}%" == shown
    report = (tmp_path / "report.html").read_text()
    assert "<html" in report
    assert "http" not in report.replace("http://www.w3.org", ""), "the report stands alone"


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
    someone.see("Left whole", seconds=300)
    page = someone.page
    page.get_by_text("Choose another network or other images").click()
    checkpoint, images = page.locator("input[type=file]").nth(0), page.locator("input[type=file]").nth(1)
    checkpoint.set_input_files(ROOT / "assets" / "cifar10-vgg8.safetensors")
    images.set_input_files(archive)
    page.get_by_text("my digits.zip").wait_for()
    someone.press("Analyse")
    someone.see("is not a checkpoint of digits-resnet20", seconds=120)
    someone.see("missing (")
    page.get_by_text("Choose another network or other images").first.wait_for()
    page.locator("input[type=file]").nth(0).set_input_files(ROOT / "assets" / "digits-resnet20.safetensors")
    page.get_by_text("1.1MB").wait_for()  # long names are shortened
    page.wait_for_timeout(1000)  # until it has arrived; the images are there already
    someone.press("Analyse")
    someone.see("12 groups, 3 of them residual streams", seconds=200)
    assert "scans" in page.get_by_role("combobox", name="Study").input_value()
    someone.go("Importance")
    someone.press("Show what excites it")
    someone.see("integrated gradients", seconds=120)
    assert page.locator("[data-testid=stImage] img").count() == 16
    someone.go("Prune")
    someone.press("Measure")
    someone.see("Note on this plan", seconds=180)
    assert float(someone.metric("Accuracy").rstrip("%")) > 90


def test_forget_walk(visit: Callable[..., Visitor]) -> None:
    someone = visit()
    someone.open("forget")
    page = someone.page
    page.get_by_text("Classes to forget").wait_for(timeout=300_000)
    page.get_by_role("button", name="3", exact=True).click()
    someone.settle()
    someone.press("Forget")
    someone.see("Confusion after", seconds=180)
    forget, retain = (float(someone.metric(f"{which} accuracy").rstrip("%")) for which in ("Forget", "Retain"))
    assert forget < 50 < retain
    for label in ("Linear probe", "Membership inference", "BN recall"):
        assert someone.metric(label)
    for text in (
        "Is it forgotten?",
        "Where the class lives",
        "The strength that was searched",
        "Not answered any more",
    ):
        someone.see(text)
    someone.go("Export")
    assert page.get_by_role("combobox", name="Current plan").input_value() == "Without 3"
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the plan").click()
    assert download.value.suggested_filename == "plan.zip"


def test_bounds_walk(visit: Callable[..., Visitor]) -> None:
    someone = visit()
    someone.open("bounds")
    someone.see("Lower bound: the largest operator norm")
    page = someone.page
    page.get_by_role("button", name="More", exact=True).click()
    someone.press("Estimate")
    page.get_by_role("button", name="Operator norms").click(timeout=180_000)
    someone.see("Upper bound: products of operator norms")
    someone.press("Measure")
    someone.see("Layer by layer", seconds=180)
    someone.see("times the measured error")
    someone.see("With constants from 128 calibration images instead")
    # The last of the first estimator's points: the layer that writes the logits, which reads the last stream.
    first = page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").first.locator(".points path").last
    box = first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 4, y - 4)
    page.mouse.move(x, y)
    assert "linear" in (page.locator(".hoverlayer").first.text_content() or "")
    page.mouse.click(x, y)
    someone.see("The whole network", seconds=60)
    assert page.get_by_role("combobox", name="Group in focus").input_value() == "layer3.0.conv2"


def _modhifi(*arguments: str, cwd: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "modhifi", *arguments], cwd=cwd, env=_environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=_environment(), capture_output=True, check=True, text=True
    )
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(ROOT)}
