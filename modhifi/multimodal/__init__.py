"""Modality balance: training on several modalities so that none is neglected, and measuring how they compete.

    method = AGM(alpha=1.0)
    for inputs, targets in batches:              # inputs: a dict or tuple of modalities, each (B, …)
        optimizer.zero_grad()
        criterion(method(model, inputs, targets), targets).backward()
        optimizer.step()

Adaptive gradient modulation (AGM, Li et al., ICCV 2023, arXiv 2308.07686) for any model; other methods to compare with; the
competition strength; and a small experiment on audio-visual digits that compares all methods (`train`). See docs/theory.md,
*Modality balance*.
"""

from ._competition import competition_strength
from ._data import MultimodalData, Pairs, audio_visual_digits, keep_energy, load_multimodal, two_views
from ._methods import AGM, MSES, MSLR, OGMGE, Diverged, Joint
from ._networks import FUSIONS, Fusion, network
from ._report import TITLES, in_words, report, rows
from ._run import BALANCING_METHODS, Alone, Epoch, MeanSpread, MethodName, Outcome, Run, Settings, methods_for
from ._shapley import mono_modal_outputs, shapley_values
from ._train import train

__all__ = [
    "AGM",
    "FUSIONS",
    "BALANCING_METHODS",
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
    "MeanSpread",
    "audio_visual_digits",
    "competition_strength",
    "in_words",
    "keep_energy",
    "load_multimodal",
    "methods_for",
    "mono_modal_outputs",
    "network",
    "report",
    "rows",
    "shapley_values",
    "train",
    "two_views",
]
