"""Find the components of a trained network that carry its predictions, prune the others, or make it forget a class.

    model = modhifi.load_model("digits-resnet20")
    study = modhifi.analyze(model, modhifi.load_data("digits"), samples=512)
    plan = modhifi.prune(study, flops=0.5)
    smaller = modhifi.apply(plan, model)
    print(modhifi.evaluate(smaller, modhifi.load_data("digits", split="test"), baseline=model))

One pass over unlabelled data collects sufficient statistics; importance, pruning, bounds and unlearning follow from them in
closed form (ModHiFi, Kashyap et al., NeurIPS 2025).
"""

from . import bounds, fidelity
from .data import Data, load_data
from .errors import Cancelled, UserError
from .evaluation import Evaluation, evaluate
from .export import export
from .export import report_html as export_report
from .loading import load_model, wrap
from .models import Model
from .plan import Plan
from .pruning import allocate, prune
from .specs import PruningSpec
from .study import Study, analyze
from .surgery import apply
from .unlearning import unlearn

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Data",
    "Evaluation",
    "Model",
    "Plan",
    "PruningSpec",
    "Study",
    "UserError",
    "allocate",
    "analyze",
    "apply",
    "bounds",
    "evaluate",
    "export",
    "export_report",
    "fidelity",
    "load_data",
    "load_model",
    "prune",
    "unlearn",
    "wrap",
]
