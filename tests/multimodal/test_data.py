"""Audio-visual digits: real pairs, disjoint splits, and a spectrogram and a PCA that are what they say."""

import hashlib
import io
import math
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modhifi import UserError
from modhifi.multimodal import MultimodalData, audio_visual_digits, keep_energy, load_multimodal, two_views
from modhifi.multimodal._data import SPLITS, log_mel, mel_filters


def distinct(values: Tensor) -> set[str]:
    return {hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in values}


def disjoint(data: MultimodalData, modality: str) -> bool:
    train, validation, test = (distinct(getattr(data, split).inputs[modality]) for split in SPLITS)
    return not (train & validation or train & test or validation & test)


def test_two_views_are_halves_of_the_same_image() -> None:
    data = two_views()
    assert "two real views" in data.about
    assert data.shapes == {"left": (1, 8, 4), "right": (1, 8, 4)}
    assert [len(getattr(data, split)) for split in SPLITS] == [785, 512, 500]
    for name in data.modalities:
        assert float(data.train.inputs[name].mean()) == pytest.approx(0, abs=1e-5)
        assert float(data.train.inputs[name].std()) == pytest.approx(1, abs=1e-4)
    whole = [torch.cat(list(getattr(data, split).inputs.values()), dim=3) for split in SPLITS]
    a, b, c = (distinct(images) for images in whole)
    assert len(a | b | c) == len(a) + len(b) + len(c)


def test_pairs_are_drawn_by_the_seed() -> None:
    one, same, other = (two_views(100, seed) for seed in (0, 0, 1))
    assert torch.equal(one.train.targets, same.train.targets)
    assert not torch.equal(one.train.targets, other.train.targets)
    assert torch.equal(one.test.targets, other.test.targets), "what is judged is always the same"
    assert len(two_views(1600).train) == 1600


@pytest.fixture(scope="module")
def fsdd(shared: Path) -> Path:
    return shared / "data" / "fsdd"


@pytest.fixture(scope="module")
def spoken(fsdd: Path) -> MultimodalData:
    return audio_visual_digits(fsdd, 785)


def test_audio_visual_digits_are_paired_by_label_and_disjoint(spoken: MultimodalData, fsdd: Path) -> None:
    assert spoken.shapes == {"image": (1, 8, 8), "audio": (1, 32, 32)}
    assert [len(getattr(spoken, split)) for split in SPLITS] == [785, 512, 1500]
    assert disjoint(spoken, "image")
    assert disjoint(spoken, "audio")
    # The label of each recording, found again by its own spectrogram.
    table = pq.read_table(fsdd / "test.parquet").to_pylist()
    sounds = [_samples(row["audio"]["bytes"]) for row in table]
    plain = log_mel(sounds)[:, 0].flatten(1)
    ours = spoken.test.inputs["audio"].flatten(1)
    rescaled = (plain - plain.mean()) / plain.std()
    nearest = torch.cdist((ours - ours.mean()) / ours.std(), rescaled).argmin(1)
    assert [table[i]["label"] for i in nearest.tolist()] == spoken.test.targets.tolist()
    assert len(nearest.unique()) == 300, "every test recording is used"


def _samples(encoded: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(encoded)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def test_log_mel_by_hand() -> None:
    sound = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    found = log_mel([sound])[0, 0].double()
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 256) for n in range(256)]
    top = 2595 * math.log10(1 + 4000 / 700)
    edges = [700 * (10 ** (top * i / 33 / 2595) - 1) for i in range(34)]
    for frame in (0, 3, 17, 31):  # the last one lies after the end of the sound
        piece = np.zeros(256)
        samples = sound[160 * frame : 160 * frame + 256]
        piece[: len(samples)] = samples
        power = np.abs(np.fft.rfft(piece * window)) ** 2
        for band in (0, 5, 31):
            low, centre, high = edges[band : band + 3]
            energy = 0.0
            for k, p in enumerate(power):
                hertz = k * 8000 / 256
                if low < hertz <= centre:
                    energy += p * (hertz - low) / (centre - low)
                elif centre < hertz < high:
                    energy += p * (high - hertz) / (high - centre)
            assert float(found[band, frame]) == pytest.approx(math.log(energy + 1e-6), rel=1e-3), (band, frame)
    assert bool((mel_filters().sum(1) > 0).all()), "no band is empty"


def test_a_tone_lies_in_its_band() -> None:
    for hertz in (300.0, 1000.0, 3000.0):
        sound = np.sin(2 * np.pi * hertz * np.arange(8000) / 8000).astype(np.float32)
        band = int(log_mel([sound])[0, 0].mean(1).argmax())
        mel = 2595 * math.log10(1 + hertz / 700) / (2595 * math.log10(1 + 4000 / 700)) * 33
        assert abs(band + 1 - mel) <= 1


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 1.0), st.integers(0, 100))
def test_pca_keeps_the_share_and_no_more_than_it_needs(energy: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(40, 1, 3, 2, generator=generator, dtype=torch.float64) * torch.arange(1, 7).reshape(1, 1, 3, 2)
    kept, other = keep_energy([train, train[:5] + 1], energy)
    centred = (train - train.mean(0)).flatten(1)
    after = (kept - kept.mean(0)).flatten(1)
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    rank = int(torch.linalg.matrix_rank(after, atol=1e-8))
    assert float(after.square().sum() / centred.square().sum()) >= energy - 1e-9
    assert float(values[: rank - 1].sum() / values.sum()) < energy
    assert torch.allclose(kept.mean(0), train.mean(0), atol=1e-10)
    again, _ = keep_energy([kept, other], 1.0)
    assert torch.allclose(again, kept, atol=1e-8), "nothing is left to take away"


def test_degraded_by_name() -> None:
    plain, degraded = load_multimodal(), load_multimodal(degrade={"left": 0.5})
    assert torch.equal(plain.train.inputs["right"], degraded.train.inputs["right"])
    left = degraded.test.inputs["left"].flatten(1)
    assert torch.linalg.matrix_rank(left - left.mean(0), atol=1e-3) < 8


def recordings(folder: Path, change=lambda row: row) -> Path:
    """A tiny data set of ten digits with the needed numbers, each a tone."""
    folder.mkdir(exist_ok=True)
    for split, numbers in (("train", (5, 10)), ("test", (0,))):
        rows = [change(_recording(digit, number)) for digit in range(10) for number in numbers]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def _recording(digit: int, number: int, rate: int = 8000) -> dict:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        tone = np.sin(np.arange(2000 + number) * (digit + 1) / 20) * 8000
        file.writeframes(tone.astype("<i2").tobytes())
    return {"audio": {"bytes": buffer.getvalue(), "path": f"{digit}_anna_{number}.wav"}, "label": digit}


def test_any_folder_of_that_form(tmp_path: Path) -> None:
    data = load_multimodal(str(recordings(tmp_path)), pairs=50, degrade={"image": 0.25})
    assert len(data.train) == 50
    assert data.modalities == ("image", "audio")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda r: r | {"audio": {"bytes": b"RIFF", "path": r["audio"]["path"]}}, "is not a WAV file"),
        (lambda r: _recording(r["label"], int(r["audio"]["path"][7:-4]), rate=16000), "at 8000 Hz"),
        (lambda r: r | {"audio": r["audio"] | {"path": "x.wav"}}, "DIGIT_SPEAKER_NUMBER"),
        (lambda r: r | {"label": 3}, "no recording of the digit"),
        (lambda r: {"sound": r["label"]}, "no columns audio and label"),
        (lambda r: r | {"label": None}, "must be a number from 0 to 9, not None"),
        (lambda r: r | {"label": "three"}, "must be a number from 0 to 9, not 'three'"),
        (lambda r: r | {"audio": {"bytes": r["audio"]["bytes"]}}, "DIGIT_SPEAKER_NUMBER"),
        (lambda r: r | {"audio": r["audio"] | {"bytes": r["audio"]["bytes"][:-1]}}, "complete, non-empty"),
        (lambda r: r | {"audio": r["audio"] | {"path": r["audio"]["path"].replace("_5.", "_4.")}}, "numbered 5 to 9"),
    ],
)
def test_damaged_recordings_are_one_line(tmp_path: Path, change, line: str) -> None:
    with pytest.raises(UserError, match=line):
        load_multimodal(str(recordings(tmp_path, change)))


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no .*train\.parquet"):
        load_multimodal(str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        load_multimodal(str(tmp_path))
    with pytest.raises(UserError, match="the modalities are left, right"):
        load_multimodal(degrade={"audio": 0.5})
    with pytest.raises(UserError, match="above 0"):
        load_multimodal(degrade={"left": 0.0})
    for some in (0, 1):
        with pytest.raises(UserError, match="too few"):
            load_multimodal(pairs=some)
    seed = next(s for s in range(200) if len(set(_labels(2, s))) == 1)
    with pytest.raises(UserError, match="all training pairs belong to one class"):
        load_multimodal(pairs=2, seed=seed)


def _labels(pairs: int, seed: int) -> list[int]:
    from modhifi.multimodal._data import _draw, _images

    targets = _images("train")[1]
    return targets[_draw(len(targets), pairs, seed)].tolist()
