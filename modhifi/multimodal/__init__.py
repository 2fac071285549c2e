"""Modality balance: training several modalities together so that none is left out, and measuring how they compete.

    method = AGM(alpha=1.0)
    for inputs, targets in batches:              # inputs: a dict or tuple of modalities, each (B, …)
        optimizer.zero_grad()
        criterion(method(model, inputs, targets), targets).backward()
        optimizer.step()

Adaptive gradient modulation of Li et al., ICCV 2023, arXiv 2308.07686 (theory, section 7), for any model; methods to compare it
with; the competition strength; and a small recipe on audio-visual digits that compares them all (`train`).
"""

from ._competition import competition_strength
from ._data import MultimodalData, Pairs, audio_visual_digits, keep_energy, load_multimodal, two_views
from ._methods import AGM, MSES, MSLR, OGMGE, Diverged, Joint
from ._networks import FUSIONS, Fusion, network
from ._report import TITLES, in_words, report, rows
from ._run import METHODS, Alone, Epoch, MethodName, Outcome, Run, Settings, Spread
from ._shapley import mono_modal_outputs, shapley_values
from ._train import train

__all__ = [
    "AGM",
    "FUSIONS",
    "METHODS",
    "TITLES",
    "MSES",
    "MSLR",
    "OGMGE",
    "Alone",
    "Diverged",
    "Epoch",
    "Fusion",
    "Joint",
    "MethodName",
    "MultimodalData",
    "Outcome",
    "Pairs",
    "Run",
    "Settings",
    "Spread",
    "audio_visual_digits",
    "competition_strength",
    "in_words",
    "keep_energy",
    "load_multimodal",
    "mono_modal_outputs",
    "network",
    "report",
    "rows",
    "shapley_values",
    "train",
    "two_views",
]
