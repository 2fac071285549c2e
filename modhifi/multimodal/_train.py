"""`train`: the same short training for every method, every seed and each modality alone, then the measurements.

SGD with momentum 0.9 and a cosine schedule. The network after the last epoch is the result, and test data are used only then.
Validation data are used for the training curves, the early stopping of MSES, the learning rates of MSLR, and to fit the
regression of the competition strength.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..devices import choose_device
from ..errors import UserError
from ..files import atomic_folder, claim_folder, write_json
from ..progress import Progress, silent
from ._competition import competition_strength
from ._data import SPLITS, MultimodalData, Pairs, load_multimodal
from ._inputs import check, check_targets
from ._methods import AGM, MSES, MSLR, OGMGE, Diverged, Joint
from ._networks import network
from ._run import FILE, FOLDER, Alone, Epoch, MethodName, Outcome, Run, Settings
from ._shapley import mono_modal_outputs

__all__ = ["Watch", "train"]

Watch = Callable[[Run], None]
MULTIPLES = (0.3, 1.0, 3.0)
"""Multiples of the common learning rate that MSLR chooses from."""
_EVALUATED = 512


def train(
    settings: Settings,
    *,
    out: Path | str | None = None,
    load: Callable[[int], MultimodalData] | None = None,
    device: str = "cpu",
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Run:
    """Trains and measures every method and modality of ``settings``.

    ``load(seed)`` returns the data for a seed, by default the data that ``settings`` names. ``watch`` is called after every
    epoch with the run so far. ``out`` is a folder for the run and its weights; it is written at the very end, so a run that
    fails or is cancelled leaves nothing.

    Raises `UserError` for unsuitable data (NaN, a modality missing from a split, sizes that do not match, a single class) and
    if training diverges.
    """
    return _Training(settings, load, device, watch or (lambda _: None), progress or silent).run(out)


class _Training:
    def __init__(
        self,
        settings: Settings,
        load: Callable[[int], MultimodalData] | None,
        device: str,
        watch: Watch,
        progress: Progress,
    ) -> None:
        self.settings, self.watch, self.progress = settings, watch, progress
        self.device = choose_device(device)
        self.load = load or (lambda seed: load_multimodal(settings.data, settings.pairs, settings.degrade, seed))
        self.weights: dict[str, dict[str, Tensor]] = {}
        self.state: Run
        self.epochs_done = self.epochs_total = 0

    def run(self, out: Path | str | None) -> Run:
        s = self.settings
        if out is not None:
            claim_folder(Path(out), FOLDER)
        self.progress(0, 0, "loading data")
        data = self._data(0)
        self._start(data)
        for seed in range(s.seeds):
            if seed:
                data = self._data(seed)
            concepts = {name: self._alone(data, name, seed) for name in data.modalities}
            if seed == 0 and "mslr" in s.methods:
                self.state = self.state.model_copy(update={"rates": self._rates(data, concepts)})
            for method in s.methods:
                self._together(data, method, seed, concepts)
        self.state = self.state.model_copy(update={"finished": True})
        self.watch(self.state)
        if out is not None:
            with atomic_folder(Path(out), FOLDER) as folder:
                for name, weights in self.weights.items():
                    save_file(weights, folder / f"{name}.safetensors")
                write_json(folder / FILE, self.state.model_dump(mode="json"))
        return self.state

    def _data(self, seed: int) -> MultimodalData:
        """The data of a seed on the device. Raises `UserError` if they are unsuitable for training."""
        data = self.load(seed)
        for split in SPLITS:
            pairs: Pairs = getattr(data, split)
            try:
                check(pairs.inputs, pairs.targets, data.modalities)
                check_targets(pairs.targets, len(data.classes))
            except UserError as error:
                raise UserError(f"{split} data: {error}") from error
        if len(data.train.targets.unique()) < 2:
            raise UserError("all training pairs belong to one class; training needs at least two classes")
        return data.to(self.device)

    def _start(self, data: MultimodalData) -> None:
        s = self.settings
        self.state = Run(
            settings=s,
            about=data.about,
            modalities=data.modalities,
            classes=data.classes,
            shapes=data.shapes,
            samples={split: len(getattr(data, split)) for split in SPLITS},
        )
        tried = (len(MULTIPLES) - 1) if "mslr" in s.methods else 0
        self.epochs_total = s.epochs * (len(data.modalities) * (s.seeds + tried) + s.seeds * len(s.methods))

    def _alone(self, data: MultimodalData, modality: str, seed: int) -> nn.Module:
        """Trains the mono-modal network, which serves as reference and as concept."""
        before = self.state.alone

        def note(history: list[Epoch], accuracy: float | None = None) -> None:
            one = Alone(modality=modality, seed=seed, history=history, accuracy=accuracy)
            self._update(alone=[*before, one])

        what = f"{modality} alone, seed {seed + 1} of {self.settings.seeds}"
        net, history = self._fit(data.only(modality), Joint(), seed, what, note)
        note(history, accuracy(_logits(net, data.only(modality).test), data.test.targets))
        return net

    def _rates(self, data: MultimodalData, trained: Mapping[str, nn.Module]) -> dict[str, float]:
        """Modality → the multiple of the learning rate that gives the lowest validation loss when it is trained alone."""
        found = {}
        for name in data.modalities:
            one = data.only(name)
            losses = {}
            for multiple in MULTIPLES:
                net = trained[name]
                if multiple != 1.0:
                    try:
                        net, _ = self._fit(
                            one, Joint(), 0, f"{name} alone, learning rate × {multiple:g}", rate=multiple
                        )
                    except Diverged:
                        continue
                losses[multiple] = float(cross_entropy(_logits(net, one.validation), one.validation.targets))
            found[name] = min(losses, key=losses.__getitem__)
        return found

    def _together(self, data: MultimodalData, name: MethodName, seed: int, concepts: Mapping[str, nn.Module]) -> None:
        before = self.state.outcomes
        began = time.perf_counter()

        def note(history: list[Epoch], **measured: Any) -> None:
            self._update(outcomes=[*before, Outcome(method=name, seed=seed, history=history, **measured)])

        method = self._method(name, seed)
        what = f"{method.title}, seed {seed + 1} of {self.settings.seeds}"
        net, history = self._fit(data, method, seed, what, note)
        seconds = time.perf_counter() - began
        fit, test = _features(net, data.validation), _features(net, data.test)
        competition = {
            modality: competition_strength(
                fit, _logits(concept, data.only(modality).validation), test, _logits(concept, data.only(modality).test)
            )
            for modality, concept in concepts.items()
        }
        targets = data.test.targets
        note(
            history,
            accuracy=accuracy(_logits(net, data.test), targets),
            mono={one: accuracy(values, targets) for one, values in _mono(net, data.test).items()},
            competition=competition,
            seconds=seconds,
        )
        self.weights[f"{name}-{seed}"] = {key: value.cpu().contiguous() for key, value in net.state_dict().items()}

    def _method(self, name: MethodName, seed: int) -> Joint:
        s = self.settings
        if name == "agm":
            return AGM(s.alpha)
        if name == "ogm-ge":
            return OGMGE(s.ogm_alpha, seed=seed)
        if name == "mslr":
            return MSLR(self.state.rates)
        return MSES(s.patience) if name == "mses" else Joint()

    def _update(self, **news: Any) -> None:
        self.state = self.state.model_copy(update=news)
        self.watch(self.state)

    def _fit(
        self,
        data: MultimodalData,
        method: Joint,
        seed: int,
        what: str,
        note: Callable[[list[Epoch]], None] | None = None,
        rate: float = 1.0,
    ) -> tuple[nn.Module, list[Epoch]]:
        """One training. ``seed`` sets the initial weights and the order of the pairs, which are the same for every method."""
        s = self.settings
        together = len(data.modalities) > 1
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = network(s.fusion, data.shapes, len(data.classes), s.batch_norm).to(self.device)
        optimizer = torch.optim.SGD(method.parameter_groups(net, rate * s.rate), momentum=0.9, weight_decay=s.decay)
        # Batches are nearly equal in size and at least as large as requested, so that no small batch comes last.
        size = math.ceil(len(data.train) / max(1, len(data.train) // s.batch))
        steps = math.ceil(len(data.train) / size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.epochs * steps)
        history: list[Epoch] = []
        for _ in range(s.epochs):
            net.train()
            total = 0.0
            seen: list[dict[str, float]] = []
            for part in torch.randperm(len(data.train), generator=generator).split(size):
                self.progress(self.epochs_done, self.epochs_total, what)
                batch = data.train.take(part.to(self.device))
                optimizer.zero_grad()
                try:
                    output = method(net, batch.inputs, batch.targets) if together else net(batch.inputs)
                except Diverged as error:
                    raise Diverged(f"{what}: {error}") from error
                loss = cross_entropy(output, batch.targets)
                loss.backward()
                method.adjust(net)
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(part)
                seen.append(method.coefficients)
            net.eval()
            logits = _logits(net, data.validation)
            if not (math.isfinite(total) and bool(torch.isfinite(logits).all())):
                raise Diverged(f"{what}: training diverged; use a learning rate below {s.rate:g}")
            targets = data.validation.targets
            mono = _mono(net, data.validation) if together else {}
            history.append(
                Epoch(
                    loss=total / len(data.train),
                    accuracy=accuracy(logits, targets),
                    mono={name: accuracy(values, targets) for name, values in mono.items()},
                    coefficients={name: statistics.fmean(one[name] for one in seen) for name in mono},
                )
            )
            method.end_epoch(net, {name: float(cross_entropy(values, targets)) for name, values in mono.items()})
            self.epochs_done += 1
            if note is not None:
                note(history)
        return net, history


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Fraction of rows of ``logits`` (N, K) whose largest entry is the target (N,)."""
    return float((logits.argmax(1) == targets).double().mean())


def _logits(net: nn.Module, pairs: Pairs) -> Tensor:
    """Logits (N, K), computed in batches without gradients."""
    return _batched(lambda inputs: net(inputs), pairs)


def _features(net: nn.Module, pairs: Pairs) -> Tensor:
    return _batched(net.features, pairs)  # type: ignore[arg-type]


@torch.no_grad()
def _batched(what: Callable[[dict[str, Tensor]], Tensor], pairs: Pairs) -> Tensor:
    places = torch.arange(len(pairs), device=pairs.targets.device).split(_EVALUATED)
    return torch.cat([what(pairs.take(place).inputs) for place in places])


@torch.no_grad()
def _mono(net: nn.Module, pairs: Pairs) -> dict[str, Tensor]:
    """φ_m of each modality, (N, K)."""
    parts = [mono_modal_outputs(net, pairs.take(place).inputs) for place in torch.arange(len(pairs)).split(_EVALUATED)]
    return {name: torch.cat([part[name] for part in parts]) for name in pairs.inputs}
