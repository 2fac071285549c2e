import hashlib

import numpy as np
import pytest

import modhifi
from modhifi import Model, UserError

SPLITS = {"train": 785, "calibration": 512, "test": 500}


def test_sizes_and_no_overlap() -> None:
    parts = {name: modhifi.load_data("digits", split=name) for name in SPLITS}
    assert {name: len(part) for name, part in parts.items()} == SPLITS
    together = [i for part in parts.values() for i in part.order]
    assert sorted(together) == list(range(1797))


@pytest.mark.parametrize("split", SPLITS)
def test_stratified(split: str) -> None:
    targets = modhifi.load_data("digits", split=split).targets
    assert targets is not None
    counts = targets.bincount()
    # scikit-learn has between 174 and 183 of each digit; the rest of that difference is left to the training split.
    assert int(counts.max() - counts.min()) <= (9 if split == "train" else 1)


def test_the_split_never_changes() -> None:
    order = np.asarray(modhifi.load_data("digits", split="test").order, dtype="<i8")
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "30dc80f2baa7243e"


def test_images(digits_model: Model) -> None:
    data = modhifi.load_data()
    assert data.split == "calibration"
    image = data.read(data.order[0])
    assert image.size == (8, 8)
    low, high = image.getextrema()
    assert low == 0
    assert 200 < high <= 255
    batch, labels = next(data.batches(digits_model.input, 4))
    assert batch.shape == (4, 3, 32, 32)
    assert labels is not None
    assert labels.tolist() == [int(data.labels[i]) for i in data.order[:4]]


def test_draw_is_by_seed() -> None:
    first, again, other = (modhifi.load_data(samples=100, seed=seed) for seed in (1, 1, 2))
    assert first.ref == again.ref
    assert first.ref.fingerprint != other.ref.fingerprint
    assert len(first) == 100


def test_unknown_split_and_root() -> None:
    with pytest.raises(UserError, match="no split 'val'; it has train, calibration, test"):
        modhifi.load_data("digits", split="val")
    with pytest.raises(UserError, match="digits needs no folder; omit the data root"):
        modhifi.load_data("digits", root="/somewhere")
    with pytest.raises(UserError, match="at least 1"):
        modhifi.load_data("digits", samples=0)
