"""Audio-visual digits, and two views of one image where no recordings are available.

*Audio-visual digits*: scikit-learn's handwritten digits (8×8) and the spoken digits of the Free Spoken Digit Dataset (FSDD)
as log-mel spectrograms (32×32), paired by label. Images are split as in `modhifi.load_data`; recordings by their number among
a speaker's recordings of a digit: 0–4 test (as in the dataset), 5–9 validation, the rest training. The splits share no image
and no recording.

*Two views*: the left and the right half of each image, which needs no recordings.
"""

from __future__ import annotations

import dataclasses
import io
import re
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import load_data
from ..errors import UserError

__all__ = [
    "SPLITS",
    "MultimodalData",
    "Pairs",
    "audio_visual_digits",
    "keep_energy",
    "load_multimodal",
    "log_mel",
    "two_views",
]

SPLITS = ("train", "validation", "test")
_IMAGES = {"train": "train", "validation": "calibration", "test": "test"}
RATE = 8000
"""Sampling rate of a recording in Hz."""
_WINDOW, _HOP, _MELS, _FRAMES = 256, 160, 32, 32
_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")


@dataclass(frozen=True)
class Pairs:
    """Samples of one split: ``inputs``, modality → (N, C, H, W) float32, and class indices (N,) int64."""

    inputs: dict[str, Tensor]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, places: Tensor) -> Pairs:
        return Pairs({name: one[places] for name, one in self.inputs.items()}, self.targets[places])


@dataclass(frozen=True)
class MultimodalData:
    """Three disjoint splits. ``about``: one sentence that describes the pairs."""

    name: str
    about: str
    classes: tuple[str, ...]
    train: Pairs
    validation: Pairs
    test: Pairs

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.train.inputs)

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Modality → (C, H, W)."""
        return {name: tuple(one.shape[1:]) for name, one in self.train.inputs.items()}  # type: ignore[misc]

    def only(self, modality: str) -> MultimodalData:
        """The same data with one modality only."""
        return self._each(lambda pairs: Pairs({modality: pairs.inputs[modality]}, pairs.targets))

    def to(self, device: torch.device) -> MultimodalData:
        return self._each(
            lambda pairs: Pairs({name: x.to(device) for name, x in pairs.inputs.items()}, pairs.targets.to(device))
        )

    def _each(self, change: Callable[[Pairs], Pairs]) -> MultimodalData:
        return dataclasses.replace(
            self, train=change(self.train), validation=change(self.validation), test=change(self.test)
        )


def load_multimodal(
    data: str = "digits", pairs: int | None = None, degrade: Mapping[str, float] | None = None, seed: int = 0
) -> MultimodalData:
    """``digits`` (two views, no files needed), or a folder that holds the Free Spoken Digit Dataset as train.parquet and
    test.parquet.

    ``pairs`` training pairs are drawn by ``seed`` (by default every image once); validation and test data are always the same.
    ``degrade`` maps modalities to the share of PCA energy to keep, as in AV-MNIST (`keep_energy`).

    Raises `UserError` for missing or damaged data, training pairs of a single class, or an unknown modality in ``degrade``.
    """
    made = two_views(pairs, seed) if data == "digits" else audio_visual_digits(Path(data), pairs, seed)
    for name, energy in (degrade or {}).items():
        if name not in made.modalities:
            raise UserError(f"cannot degrade {name!r}; the modalities are {', '.join(made.modalities)}")
        splits = [getattr(made, split).inputs for split in SPLITS]
        for one, kept in zip(splits, keep_energy([one[name] for one in splits], energy), strict=True):
            one[name] = kept
    return made


def keep_energy(splits: list[Tensor], energy: float) -> list[Tensor]:
    """Projects each split (N, …) on the fewest principal components of the first split that hold ``energy`` of its variance."""
    if not 0 < energy <= 1:
        raise UserError(f"the share of energy to keep is above 0 and at most 1, not {energy}")
    flat = splits[0].flatten(1).double()
    mean = flat.mean(0)
    _, values, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    held = values.square().cumsum(0) / values.square().sum()
    basis = directions[: int((held < energy - 1e-12).sum()) + 1]
    return [
        (((one.flatten(1).double() - mean) @ basis.T) @ basis + mean).to(one.dtype).reshape(one.shape) for one in splits
    ]


# Images


def _images(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and class indices (N,)."""
    data = load_data("digits", split=_IMAGES[split])
    pixels = np.stack([np.asarray(data.read(i)) for i in data.order]).astype(np.float32) / 255
    assert data.targets is not None, "the digits have labels"
    return torch.from_numpy(pixels)[:, None], data.targets


def two_views(pairs: int | None = None, seed: int = 0) -> MultimodalData:
    """The left and the right half of each handwritten digit, 8×4 pixels each, as two modalities."""
    found = {}
    for split in SPLITS:
        images, targets = _images(split)
        if split == "train" and pairs is not None:
            chosen = _draw(len(targets), pairs, seed)
            images, targets = images[chosen], targets[chosen]
        found[split] = Pairs({"left": images[..., :4], "right": images[..., 4:]}, targets)
    return _standardised(
        "digits", "Left and right halves of scikit-learn's handwritten digits: two real views, no recordings.", found
    )


def _draw(available: int, wanted: int, seed: int) -> Tensor:
    """``wanted`` indices below ``available``, without replacement; each further round starts again with all of them."""
    if wanted < 2:
        raise UserError(f"{wanted} training pairs are too few; use at least 2")
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-wanted // available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])[:wanted]


def _standardised(name: str, about: str, splits: Mapping[str, Pairs]) -> MultimodalData:
    """Standardises every modality over the training pairs, so that muting with zeros replaces it by its mean."""
    train = splits["train"]
    if len(train.targets.unique()) < 2:
        raise UserError("all training pairs belong to one class; use more pairs or other data")
    for modality, values in list(train.inputs.items()):
        mean, deviation = values.mean(), values.std()
        for split in splits.values():
            split.inputs[modality] = (split.inputs[modality] - mean) / deviation
    classes = tuple(str(digit) for digit in range(10))
    return MultimodalData(name, about, classes, train, splits["validation"], splits["test"])


# Recordings


def audio_visual_digits(folder: Path, pairs: int | None = None, seed: int = 0) -> MultimodalData:
    """Handwritten and spoken digits, paired by label."""
    recordings = _recordings(folder)
    found = {}
    for split in SPLITS:
        images, targets = _images(split)
        sounds, spoken = recordings[split]
        if split == "train":
            # Images and recordings are drawn independently, so that all of both are used equally often.
            chosen = _draw(len(targets), len(targets) if pairs is None else pairs, seed)
            partner = _partners(targets[chosen], spoken, seed)
        else:
            # Each test image is paired with three recordings, to reduce chance effects of the pairing.
            chosen = torch.arange(len(targets)).repeat(3 if split == "test" else 1)
            partner = _partners(targets[chosen], spoken, 0)
        found[split] = Pairs({"image": images[chosen], "audio": sounds[partner]}, targets[chosen])
    return _standardised(
        "audio-visual digits", "scikit-learn's handwritten digits and spoken digits (FSDD), paired by label.", found
    )


def _partners(targets: Tensor, spoken: Tensor, seed: int) -> Tensor:
    """For each target (N,) the index of a recording of its class; the recordings of a class are used in turns, in random
    order.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    partner = torch.empty_like(targets)
    for label in targets.unique().tolist():
        places, own = (targets == label).nonzero()[:, 0], (spoken == label).nonzero()[:, 0]
        if not len(own):
            raise UserError(f"no recording of the digit {label} in one of the splits; every split needs all ten digits")
        partner[places] = own[torch.randperm(len(own), generator=generator)].repeat(len(places) // len(own) + 1)[
            : len(places)
        ]
    return partner


def _recordings(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Split → log-mel spectrograms (N, 1, 32, 32) and class indices (N,)."""
    rows: dict[str, list[tuple[NDArray[np.float32], int]]] = {split: [] for split in SPLITS}
    for file in ("train", "test"):
        path = folder / f"{file}.parquet"
        if not path.is_file():
            raise UserError(
                f"no {path}; name a folder that holds the Free Spoken Digit Dataset as train.parquet and test.parquet"
            )
        try:
            table = pq.read_table(path, columns=["audio", "label"]).to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"{path} is damaged or has no columns audio and label; download it again") from error
        for row in table:
            audio = row["audio"] if isinstance(row["audio"], dict) else {}
            named = _NAME.fullmatch(str(audio.get("path")))
            if named is None:
                raise UserError(f"{path}: the path of each recording must have the form DIGIT_SPEAKER_NUMBER.wav")
            number = int(named[3])
            split = "test" if number < 5 else "validation" if number < 10 else "train"
            if row["label"] not in range(10):
                raise UserError(f"{path}: the label of {named[0]} must be a number from 0 to 9, not {row['label']!r}")
            rows[split].append((_waveform(audio.get("bytes"), f"{named[0]} of {path}"), row["label"]))
    for split, numbers in (("test", "0 to 4"), ("validation", "5 to 9"), ("train", "10 and above")):
        if not rows[split]:
            raise UserError(f"{folder} has no recordings numbered {numbers}, which form the {split} split; add some")
    return {
        split: (log_mel([sound for sound, _ in found]), torch.tensor([label for _, label in found]))
        for split, found in rows.items()
    }


def _waveform(encoded: bytes | None, name: str) -> NDArray[np.float32]:
    """The samples of a 16-bit mono WAV file at 8 kHz, in [−1, 1)."""
    try:
        with wave.open(io.BytesIO(encoded or b"")) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, TypeError) as error:
        raise UserError(f"{name} is not a WAV file; convert it to one") from error
    if form != (1, 2, RATE) or not frames or len(frames) % 2:
        raise UserError(f"{name} must be a complete, non-empty 16-bit mono WAV file at {RATE} Hz")
    return np.frombuffer(frames, dtype="<i2").astype(np.float32) / np.float32(32768)


def log_mel(sounds: list[NDArray[np.float32]]) -> Tensor:
    """(N, 1, 32, 32): log energy in 32 mel bands (rows) of 32 windows of 32 ms, 20 ms apart (columns). Recordings shorter than
    0.65 s are padded with silence, longer ones are cut.
    """
    length = _WINDOW + _HOP * (_FRAMES - 1)
    padded = torch.zeros(len(sounds), length)
    for row, sound in zip(padded, sounds, strict=True):
        row[: min(length, len(sound))] = torch.from_numpy(sound[:length])
    window = torch.hann_window(_WINDOW)
    power = torch.stft(padded, _WINDOW, _HOP, window=window, center=False, return_complex=True).abs().square()
    return (mel_filters() @ power + 1e-6).log()[:, None]  # (N, 1, mels, frames)


def mel_filters() -> Tensor:
    """(32, 129): triangular filters, evenly spaced on the mel scale 2595 log10(1 + f/700) from 0 to 4,000 Hz."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
    bins = np.arange(_WINDOW // 2 + 1) * RATE / _WINDOW
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling))).float()
