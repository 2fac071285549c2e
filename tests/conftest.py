"""What tests of several rooms share."""

import fcntl
import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import modhifi
from modhifi import Data, Model, Study
from modhifi.models import fingerprint
from modhifi.specs import InputSpec
from tests.few import few_digits

# Files (a folder stands for all of its files) whose tests build small things only; `make check` runs them before every commit.
FAST = (
    "app/figures",
    "app/test_components.py",
    "app/test_store.py",
    "cli/test_multimodal.py",
    "data/test_arrays.py",
    "data/test_cifar10.py",
    "data/test_digits.py",
    "data/test_folders.py",
    "data/test_parquet.py",
    "data/test_saved.py",
    "data/test_text.py",
    "data/test_transform.py",
    "evaluation/test_perplexity.py",
    "fidelity",
    "lipschitz/test_gains.py",
    "lipschitz/test_known.py",
    "lipschitz/test_spectral.py",
    "models/test_checkpoints.py",
    "models/test_cifar_resnet.py",
    "multimodal/test_competition.py",
    "multimodal/test_data.py",
    "multimodal/test_shapley.py",
    "test_replay.py",
    "test_rooms.py",
    "unlearning/test_algebra.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of `FAST`."""
    here = Path(__file__).parent
    fast = [here / name for name in FAST]
    for item in items:
        if any(path in (item.path, *item.path.parents) for path in fast):
            item.add_marker("fast")


@pytest.fixture(scope="module", autouse=True)
def imported_is_not_garbage() -> None:
    """What was imported is left out when memory is collected, as every job of the dashboard does at its end: to look at all of
    it takes longer than most tests.
    """
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def digits_study(digits_model: Model) -> Study:
    """The default model's study on all 512 calibration images. Tests share it and must not change it."""
    return modhifi.analyze(digits_model, modhifi.load_data("digits"), samples=512)


@pytest.fixture(scope="session")
def digits_test() -> Data:
    return modhifi.load_data("digits", split="test")


@pytest.fixture(scope="session")
def default_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the dashboard with the default study of few digits, made once for all processes that run tests. To be copied."""
    from app.library import Library
    from app.selection import DEFAULT
    from app.store import Store

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    root, done = folder / "default_home", folder / "default_home.done"
    with (folder / "default_home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            with few_digits():
                job = Library(Store(root)).tasks.analyse(DEFAULT)
                assert job.wait(300)
            assert job.state == "done", job.error
            done.touch()
    return root


class Chain(nn.Module):
    """A small VGG-like network: two convolutions, a flattening, two linear layers; no BatchNorm behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False)
        self.c = nn.Linear(5 * 4 * 4, 7)
        self.d = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.b(x)).flatten(1)
        return self.d(torch.relu(self.c(x)))


@pytest.fixture
def chain() -> Model:
    """`Chain` with random weights and BatchNorm statistics, for 8×8 images and four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Chain().eval().requires_grad_(False)
        net.norm.running_mean.uniform_(-0.5, 0.5)
        net.norm.running_var.uniform_(0.5, 2.0)
    spec = InputSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Model("chain", net, spec, ("a", "b", "c", "d"), None, fingerprint(net))


@pytest.fixture
def pictures() -> Data:
    """96 random pictures of 8×8 pixels with labels of `chain`'s classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)
    return Data(
        spec="pictures",
        root=None,
        split="test",
        read=lambda i: Image.fromarray(pixels[i]),
        order=tuple(range(96)),
        labels=torch.arange(96) % 4,
        classes=("a", "b", "c", "d"),
        source="pictures",
    )


LANGUAGES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "opt")


@pytest.fixture(scope="session")
def language() -> Callable[..., Model]:
    """``language(family, context=16, **changes of the configuration)``: a tiny language model with random weights and a byte
    tokenizer.
    """
    from transformers import AutoConfig

    from assets.text_llama import byte_tokenizer
    from modhifi.models.language import of_config, token_spec

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 48}
    grouped = {"intermediate_size": 24, "num_key_value_heads": 2, "tie_word_embeddings": False}
    usual = {
        "llama": grouped,
        "mistral": grouped | {"sliding_window": 8},
        "qwen2": grouped,
        "qwen3": grouped | {"head_dim": 12, "tie_word_embeddings": True},
        "gpt2": {"n_inner": 24},
        "opt": {"ffn_dim": 24, "word_embed_proj_dim": 32},
    }

    def make(family: str = "llama", context: int = 16, dtype: torch.dtype = torch.float32, **changes: object) -> Model:
        free = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        config = AutoConfig.for_model(family, **(free | shape | usual[family] | changes))
        with torch.random.fork_rng():
            torch.manual_seed(5)
            module = of_config(config)
            for name, value in module.named_parameters():
                value.data.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
        module = module.to(dtype)
        return Model(
            family, module, token_spec(config, context), (), None, fingerprint(module), tokenizer=byte_tokenizer()
        )

    return make


@pytest.fixture(scope="session")
def prose() -> Data:
    """A short text for the byte tokenizer: letters that depend on each other."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), 4)) for _ in range(12)]
    content = " ".join(generator.choice(words, 400))
    return Data("text:prose", None, "test", lambda _: Image.new("RGB", (1, 1)), (0,), None, None, "prose", text=content)
