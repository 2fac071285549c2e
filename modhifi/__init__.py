"""Which components of a trained network carry its predictions, and what to do with those that do not.

    model = modhifi.load_model("digits-resnet20")
    study = modhifi.analyze(model, modhifi.load_data("digits"), samples=512)
    plan = modhifi.prune(study, flops=0.5)
    smaller = modhifi.apply(plan, model)
    print(modhifi.evaluate(smaller, modhifi.load_data("digits", split="test"), baseline=model))

One pass over unlabelled data leaves sufficient statistics; importance, pruning, bounds and unlearning are decided from them
in closed form (ModHiFi, Kashyap et al., NeurIPS 2025).
"""

from . import bounds, fidelity
from .data import Data, load_data
from .errors import Cancelled, UserError
from .evaluation import Evaluation, evaluate
from .export import export
from .export import report_html as export_report
from .models import Model, load_model
from .plan import Plan
from .pruning import allocate, prune
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
]
