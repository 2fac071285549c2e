"""Every way in which a checkpoint can be wrong: one line that says so, and nothing in the file runs."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import modhifi
from modhifi import UserError
from modhifi.loading import reload
from modhifi.models import read_checkpoint
from modhifi.models.checkpoints import fill
from modhifi.models.cifar_resnet import cifar_resnet


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return cifar_resnet(20).state_dict()


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_formats_and_prefixes(tmp_path: Path, state: dict[str, Tensor], suffix: str, prefix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    named = {prefix + name: value for name, value in state.items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(named, path)
    else:
        torch.save(named, path)
    loaded = read_checkpoint(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {"state_dict": s}}])
def test_wrappers(tmp_path: Path, state: dict[str, Tensor], wrap: Any) -> None:
    torch.save(wrap(state), tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").keys() == state.keys()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "none.pt")
    assert "folder" in message(tmp_path)


def test_other_suffix(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert ".safetensors" in message(tmp_path / "weights.h5")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_truncated_file(tmp_path: Path, state: dict[str, Tensor], suffix: str, kept: int) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "truncated" in message(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_file_of_something_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_text("these are no weights\n" * 20)
    assert "damaged" in message(path)


class _Writes:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, state: dict[str, Tensor], save: Any) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    save({"state_dict": {"conv1.weight": _Writes(trace)}}, path)
    assert "code" in message(path)
    assert not trace.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(cifar_resnet(20), tmp_path / "module.pt")
    assert "state_dict()" in message(tmp_path / "module.pt")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "no state dict" in message(tmp_path / "other.pt")


def test_checkpoint_of_another_network() -> None:
    other = cifar_resnet(56).state_dict()
    with pytest.raises(
        UserError, match=r"f\.pt is not a checkpoint of cifar10-resnet20: 216 unexpected \(layer1\.3\."
    ) as e:
        fill(cifar_resnet(20), other, "cifar10-resnet20", "f.pt")
    assert str(e.value).endswith(", …)")
    with pytest.raises(UserError, match=r"180 missing \(layer1\.3\.conv1\.weight, "):
        fill(cifar_resnet(56), cifar_resnet(20).state_dict(), "cifar10-resnet56", "f.pt")


def test_another_number_of_classes_leaves_the_module_unchanged() -> None:
    module = cifar_resnet(20)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match=r"linear\.weight: 100×64 instead of 10×64"):
        fill(module, cifar_resnet(20, num_classes=100).state_dict(), "cifar10-resnet20", "f.pt")
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_values_that_are_not_finite(state: dict[str, Tensor]) -> None:
    broken = {name: value.clone() for name, value in state.items()}
    broken["linear.bias"][3] = float("nan")
    with pytest.raises(UserError, match=r"not finite.*linear\.bias"):
        fill(cifar_resnet(20), broken, "cifar10-resnet20", "f.pt")
    with pytest.raises(UserError, match=r"negative variances.*bn1\.running_var"):
        fill(cifar_resnet(20), state | {"bn1.running_var": -state["bn1.running_var"]}, "cifar10-resnet20", "f.pt")


def test_counters_of_batch_normalisation_may_be_missing(state: dict[str, Tensor]) -> None:
    module = cifar_resnet(20)
    fill(module, {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}, "it", "f.pt")
    assert torch.equal(module.conv1.weight, state["conv1.weight"])


def test_a_checkpoint_that_holds_itself(tmp_path: Path, state: dict[str, Tensor]) -> None:
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    torch.save(itself, tmp_path / "loop.pt")
    assert "no state dict" in message(tmp_path / "loop.pt")
    named = {"module." * 8 + name: value for name, value in state.items()}
    torch.save({"model": {"model": {"model": named}}}, tmp_path / "deep.pt")
    assert read_checkpoint(tmp_path / "deep.pt").keys() == state.keys()


def _nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def _quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.zeros(1).expand(10**9, 64), "linear.weight claims 64,000,000,000 values and holds fewer"),
        (lambda: torch.zeros(1).expand(2, 3), "linear.weight claims 6 values and holds fewer"),
        (lambda: torch.zeros(10, 64).to_sparse(), "linear.weight is sparse"),
        (lambda: torch.eye(4).to_sparse_csr(), "linear.weight is sparse"),
        (lambda: torch.zeros(10, 64, dtype=torch.complex64), "linear.weight has complex values"),
        (lambda: torch.zeros(10, 64, device="meta"), "linear.weight has a shape but no values"),
        (_quantised, "linear.weight is quantised"),
        (_nested, "linear.weight is a Tensor of a special kind"),
    ],
)
def test_what_is_no_dense_tensor_of_real_numbers(tmp_path: Path, make: Any, words: str) -> None:
    torch.save({"linear.weight": make()}, tmp_path / "odd.pt")
    assert words in message(tmp_path / "odd.pt")


def test_an_archive_that_expands(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"linear.weight": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert "claims to hold" in message(tmp_path / "bomb.pt")


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    torch.save({(1, 2): torch.zeros(1)}, tmp_path / "names.pt")
    assert "a name is a tuple" in message(tmp_path / "names.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in message(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    assert "not a regular file" in message(tmp_path / "zero.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "link.pt")
    assert "cannot be read" in message(tmp_path / "link.pt")


@pytest.mark.parametrize(
    "spec", ["digits-resnet20", "cifar10-resnet20", "digits-vit", "timm:resnet10t", "torchvision:squeezenet1_1"]
)
@pytest.mark.parametrize("shape", [(10**9, 0), (100_001, 1), (0, 64), (5,), ()])
def test_a_head_that_no_network_has_is_refused_before_one_is_built(
    tmp_path: Path, spec: str, shape: tuple[int, ...]
) -> None:
    head = {"torchvision:squeezenet1_1": "classifier.1.weight", "timm:resnet10t": "fc.weight"}
    name = head.get(spec, "head.weight" if "vit" in spec else "linear.weight")
    safetensors.torch.save_file({name: torch.zeros(shape)}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="which is no classifier of 1 to 100,000 classes"):
        modhifi.load_model(spec, tmp_path / "head.safetensors", device="cpu")


def test_whole_numbers_are_no_weights(state: dict[str, Tensor]) -> None:
    module = cifar_resnet(20)
    with pytest.raises(UserError, match=r"whole numbers for weights of it: 1 tensors \(linear\.weight\)"):
        fill(module, state | {"linear.weight": torch.ones(10, 64, dtype=torch.int8)}, "it", "f.pt")
    half = {n: v.to(torch.bfloat16) if v.is_floating_point() else v for n, v in state.items()}
    fill(module, half, "it", "f.pt")
    assert torch.equal(module.linear.weight, half["linear.weight"].float())


def test_what_single_precision_cannot_hold_is_not_finite(state: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"not finite.*linear\.weight"):
        fill(cifar_resnet(20), state | {"linear.weight": torch.full((10, 64), 1e300, dtype=torch.float64)}, "it", "f")


@pytest.mark.parametrize(
    "wrapper", ["model_state_dict", "net", "params", "weights", "ema", "state_dict_ema", "teacher", "mine"]
)
@pytest.mark.parametrize("prefix", ["", "model.", "backbone.", "module._orig_mod."])
def test_what_training_scripts_save(tmp_path: Path, state: dict[str, Tensor], wrapper: str, prefix: str) -> None:
    """Adam, its scheduler, the arguments and a numpy number lie beside the weights."""
    net = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    adam.step()
    content = {
        "epoch": np.float64(3.5),
        "best": np.int64(7),
        "args": argparse.Namespace(lr=0.1, name="run"),
        "optimizer": adam.state_dict(),
        "lr_scheduler": {"last_lr": torch.ones(1)},
        wrapper: {prefix + name: value for name, value in state.items()},
    }
    for suffix in (".pt", ".ckpt", ".pth.tar", ".bin"):
        torch.save(content, tmp_path / f"run{suffix}")
        assert read_checkpoint(tmp_path / f"run{suffix}").keys() == state.keys()


def test_which_of_several_is_said_and_can_be_chosen(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, "model_ema": {"module": averaged}}, tmp_path / "run.pt")
    assert torch.equal(read_checkpoint(tmp_path / "run.pt")["linear.bias"], state["linear.bias"])
    assert caplog.messages == [f"{tmp_path}/run.pt: took model, not model_ema; choose with --weights run.pt#NAME"]
    chosen = read_checkpoint(f"{tmp_path}/run.pt#model_ema")
    assert torch.equal(chosen["linear.bias"], averaged["linear.bias"])
    assert read_checkpoint(f"{tmp_path}/run.pt#model_ema.module").keys() == state.keys()
    with pytest.raises(UserError, match=r"has no 'best'; it holds model, model_ema; choose one"):
        read_checkpoint(f"{tmp_path}/run.pt#best")
    torch.save({"first": state, "second": averaged}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"several state dicts; choose one by --weights FILE#NAME: first, second"):
        read_checkpoint(tmp_path / "two.pt")
    torch.save(state, tmp_path / "a#b.pt")
    assert read_checkpoint(tmp_path / "a#b.pt").keys() == state.keys()


def test_a_chosen_state_dict_is_loaded_again(tmp_path: Path, state: dict[str, Tensor]) -> None:
    averaged = {name: value + (name == "linear.bias") for name, value in state.items()}
    torch.save({"model": state, "ema": averaged}, tmp_path / "run.pt")
    plain = modhifi.load_model("cifar10-resnet20", tmp_path / "run.pt", device="cpu")
    model = modhifi.load_model("cifar10-resnet20", f"{tmp_path}/run.pt#ema", device="cpu")
    assert model.fingerprint != plain.fingerprint
    assert reload(model.ref, device="cpu").fingerprint == model.fingerprint


def test_averaged_model(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    assert read_checkpoint(tmp_path / "swa.pt").keys() == net.state_dict().keys()


class _Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(2, 3)
        self.norm = torch.nn.LayerNorm(2)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_names_that_begin_like_a_prefix(tmp_path: Path, prefix: str) -> None:
    """``model.`` and ``backbone.`` may be layers of the network itself, or hold all of it."""
    for own in (torch.nn.ModuleDict({"model": torch.nn.Linear(2, 3)}), _Inner()):
        state = {prefix + name: value + 1 for name, value in own.state_dict().items()}
        torch.save(state, tmp_path / "a.pt")
        fill(own, read_checkpoint(tmp_path / "a.pt"), "it", tmp_path / "a.pt")
        assert all(torch.equal(value, state[prefix + name]) for name, value in own.state_dict().items())


def test_a_network_inside_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner, outer = torch.nn.Linear(2, 3), torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 3)})
    torch.save(inner.state_dict(), tmp_path / "a.pt")
    fill(outer, read_checkpoint(tmp_path / "a.pt"), "it", tmp_path / "a.pt")
    assert torch.equal(outer["backbone"].weight, inner.weight)
    assert caplog.messages == [f"{tmp_path}/a.pt: its names were taken with backbone. before them"]


def test_what_lies_beside_most_names(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    named = {f"model.{name}": value for name, value in state.items()} | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": named, "pytorch-lightning_version": "2.1"}, tmp_path / "last.ckpt")
    net = cifar_resnet(20)
    fill(net, read_checkpoint(tmp_path / "last.ckpt"), "it", tmp_path / "last.ckpt")
    assert torch.equal(net.linear.bias, state["linear.bias"])
    assert caplog.messages == [f"{tmp_path}/last.ckpt: left out criterion.weight, no part of the network"]


def test_sharded_checkpoints(tmp_path: Path, state: dict[str, Tensor]) -> None:
    names = sorted(state)
    table = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{number}.safetensors"
        safetensors.torch.save_file({name: state[name] for name in part}, tmp_path / file)
        table |= dict.fromkeys(part, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    loaded = read_checkpoint(index)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    index.write_text(json.dumps({"weight_map": table | {"absent": "model-00000.safetensors"}}))
    assert "names absent, which none of its files holds" in message(index)
    index.write_text(json.dumps({"weight_map": {"a": "../model-00000.safetensors"}}))
    assert "names a file in another folder" in message(index)
    index.write_text("[]")
    assert "has no weight_map" in message(index)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_other_files_are_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "is TorchScript, a network with its code" in message(path)
    path.write_text("\n<!DOCTYPE html><html>Sign in</html>")
    assert "is a web page" in message(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is a pointer of Git LFS" in message(path)


def test_many_names_that_hold_each_other(tmp_path: Path) -> None:
    names = ("state_dict", "model", "module", "net", "ema", "teacher", "params", "weights")
    dicts: list[dict[str, Any]] = [{} for _ in names]
    for one in dicts:
        one |= dict(zip(names, dicts, strict=True))
    torch.save(dicts[0], tmp_path / "loops.pt")
    assert "no state dict" in message(tmp_path / "loops.pt")
