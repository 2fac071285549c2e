"""What tests of several rooms share."""

from pathlib import Path

import pytest

import modhifi
from modhifi import Model


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published checkpoints and images beside the repository; without it, tests of them skip."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not (path / "models").is_dir():
        pytest.skip(f"the shared checkpoints and images are not beside the repository ({path.name}/)")
    return path


@pytest.fixture(scope="session")
def digits_model() -> Model:
    """The default model on the CPU. Tests share it and must not change it."""
    return modhifi.load_model(device="cpu")
