"""Training methods for several modalities, all used the same way in your own training loop:

    method = AGM(alpha=1.0)
    optimizer = torch.optim.SGD(method.parameter_groups(model, rate=0.05), momentum=0.9)
    for epoch in range(epochs):
        for inputs, targets in batches:                     # inputs: a dict or tuple of tensors (B, …)
            optimizer.zero_grad()
            criterion(method(model, inputs, targets), targets).backward()
            method.adjust(model)                            # before gradients are clipped
            optimizer.step()
        method.end_epoch(model, {…: …})                     # modality → validation loss

`Joint` is plain joint training. `AGM` needs only ``method(model, inputs, targets)`` and works with any model. The other
methods, for comparison, must know which parameters belong to which modality: ``model.encoders``, a ModuleDict by modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ._inputs import Inputs, call, check, check_targets, named
from ._shapley import coalitions, mute, muted, shapley_values, share

__all__ = ["AGM", "MSES", "MSLR", "OGMGE", "Diverged", "Joint"]

_STEEPEST = 50.0


class Diverged(UserError):  # noqa: N818 - named after the event, like Cancelled
    """Training diverged: a loss or an output is not finite."""


class Joint:
    """Plain joint training, without modulation.

    ``coefficients``: the factor that the gradient of each modality was multiplied by in the last batch.
    """

    name = "joint"
    title = "Joint"

    def __init__(self) -> None:
        self.coefficients: dict[str, float] = {}

    def parameter_groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, with learning rates; ``rate`` is the common one."""
        return [{"params": list(model.parameters()), "lr": rate}]

    def __call__(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """The model's logits (B, K), unchanged; ``targets`` are class indices (B,).

        Raises `UserError` if a modality is missing, batch sizes differ, or values are not finite.
        """
        given = named(inputs)
        check(given, targets, list(self.coefficients) or None)
        if not self.coefficients:
            self.coefficients = dict.fromkeys(given, 1.0)
        return self.forward(model, given, inputs, targets)

    def forward(self, model: nn.Module, given: dict[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:  # noqa: ARG002
        """The method's forward pass for a batch that passed the checks."""
        return call(model, given, inputs)

    def adjust(self, model: nn.Module) -> None:
        """Call this between ``backward`` and the optimizer step, before gradients are clipped."""

    def end_epoch(self, model: nn.Module, losses: Mapping[str, float]) -> None:
        """Call this after each epoch with the validation loss of each modality's own output."""


class AGM(Joint):
    """Adaptive gradient modulation (AGM, Li et al., ICCV 2023).

    With ``s_m`` the mean cross-entropy of modality m's Shapley output φ_m over the batch, s̄ their mean over the M
    modalities, and ŝ the running means over all batches so far, including this one,

        r_m = exp( M/(M−1) · (s̄ − s_m) ) ,  τ_m = exp( M/(M−1) · (ŝ̄ − ŝ_m) ) ,  κ_m = exp( α (τ_m − r_m) )

    and the gradient that flows back through φ_m is multiplied by κ_m. The output is the model's own, so with ``alpha=0``
    training equals `Joint` bit by bit. Each call costs 2^M − 2 more forward passes, which run with BatchNorm in evaluation
    mode and the same random draws (dropout) as the first. With several processes the scores are computed over all of them.
    Call ``backward`` before the next call, which changes BatchNorm statistics in place.

    ``baseline``, a dict or tuple like the inputs, replaces muted modalities (zeros for modalities without a baseline).
    ``alpha`` may change between batches. ``limit`` clips the exponent α (τ_m − r_m) on both sides. Raises `UserError` for a
    negative ``alpha``.
    """

    name = "agm"
    title = "AGM"

    def __init__(self, alpha: float = 1.0, baseline: Inputs | None = None, limit: float = 7.0) -> None:
        super().__init__()
        if not alpha >= 0:
            raise UserError(f"alpha, the strength of the modulation, must be 0 or more, not {alpha}")
        self.alpha, self.baseline, self.limit = alpha, baseline, limit
        self.scores: dict[str, float] = {}
        """s_m of the last batch."""
        self.running: dict[str, float] = {}
        """ŝ_m, the mean of s_m over ``batches`` batches."""
        self.batches = 0

    def forward(self, model: nn.Module, given: dict[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        # DistributedDataParallel synchronises buffers at each call, which the muted passes must not do.
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        everything = frozenset(given)
        draws = _Draws(targets.device)
        # The pass in training mode comes first: it updates the BatchNorm statistics that the muted passes read.
        outputs = {everything: call(model, given, inputs)}
        with muted(bare):
            for present in coalitions(list(given)):
                with draws.again():
                    outputs[present] = call(bare, mute(given, present, self.baseline), inputs)
        check_targets(targets, outputs[everything].shape[1])
        seen = {present: output.detach().float() for present, output in outputs.items()}
        try:
            self._observe(shapley_values(seen, list(given)), targets)
        except Diverged:
            wrong = [present for present, output in seen.items() if not bool(torch.isfinite(output).all())]
            if wrong and everything not in wrong:
                absent = ", ".join(name for name in given if name not in wrong[0])
                raise Diverged(
                    f"the model's output is not finite with {absent} muted; give AGM a baseline that the model can"
                    " process"
                ) from None
            raise
        factors = [share(present, self.coefficients) for present in outputs]
        return _Modulated.apply(factors, *outputs.values())  # type: ignore[no-any-return]

    def _observe(self, values: Mapping[str, Tensor], targets: Tensor) -> None:
        """Updates scores, running scores and coefficients from one batch."""
        sums = [cross_entropy(value, targets, reduction="sum") for value in values.values()]
        totals = torch.stack([*sums, torch.full_like(sums[0], len(targets))])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        means = (totals[:-1] / totals[-1]).cpu().double()
        if not bool(torch.isfinite(means).all()):
            raise Diverged(
                "training diverged: the model's output is not finite; use a lower learning rate or a smaller alpha"
            )
        self.scores = dict(zip(values, means.tolist(), strict=True))
        self.batches += 1
        for name, score in self.scores.items():
            before = self.running.get(name, score)
            self.running[name] = before + (score - before) / self.batches
        now, usual = (
            _ratios(torch.tensor([one[name] for name in values]).double()) for one in (self.scores, self.running)
        )
        exponents = (self.alpha * (usual - now)).clamp(-self.limit, self.limit)
        self.coefficients = dict(zip(values, exponents.exp().tolist(), strict=True))


def _ratios(scores: Tensor) -> Tensor:
    """exp( M/(M−1) · (mean − s_m) ), (M,) → (M,). Exponents are capped at 50 against overflow; larger values make no
    difference.
    """
    count = len(scores)
    return (count / (count - 1) * (scores.mean() - scores)).clamp(max=_STEEPEST).exp()


class _Modulated(torch.autograd.Function):
    """Returns the first tensor unchanged; in the backward pass each tensor gets the gradient times its factor."""

    @staticmethod
    def forward(ctx: Any, factors: list[float], whole: Tensor, *others: Tensor) -> Tensor:  # noqa: ARG004
        ctx.factors = factors
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient * factor for factor in ctx.factors)


class _Draws:
    """Records the random state, so that later passes can repeat the random draws of the next one."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(one) for one in self.devices)]

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.states[0])
            for one, state in zip(self.devices, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, one)
            yield


class OGMGE(Joint):
    """On-the-fly gradient modulation with generalisation enhancement (Peng et al., CVPR 2022), for late fusion of two
    modalities.

    With ``s_m = Σ_i softmax(z_m)[y_i]`` of each modality's own logits z_m and ρ_m = s_m / s_other, the encoder gradient of
    the modality with ρ_m > 1 is multiplied by 1 − tanh(α ρ_m). Gaussian noise with the standard deviation of the gradient is
    added to every encoder gradient. The model needs ``heads``, a ModuleDict by modality whose outputs add up to the logits.
    """

    name = "ogm-ge"
    title = "OGM-GE"

    def __init__(self, alpha: float = 0.5, noise: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.alpha, self.noise, self.seed = alpha, noise, seed
        self._generator: torch.Generator | None = None

    def forward(self, model: nn.Module, given: dict[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        heads = _parts(model, "heads", given, "OGM-GE needs late fusion")
        if len(given) != 2:
            raise UserError(f"OGM-GE needs two modalities, not {len(given)}; AGM supports any number")
        logits: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                logits[name] = output.detach()

            return hook

        hooks = [heads[name].register_forward_hook(keep(name)) for name in given]
        try:
            output = call(model, given, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        check_targets(targets, output.shape[1])
        sums = torch.stack([logits[name].float().softmax(1).gather(1, targets[:, None]).sum() for name in given])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        ratios = (sums / sums.flip(0)).cpu()
        factors = torch.where(ratios > 1, 1 - torch.tanh(self.alpha * ratios), 1.0)
        self.coefficients = dict(zip(given, factors.tolist(), strict=True))
        return output

    def adjust(self, model: nn.Module) -> None:
        encoders = _parts(model, "encoders", self.coefficients, "OGM-GE needs late fusion")
        for name, factor in self.coefficients.items():
            for parameter in encoders[name].parameters():
                if parameter.grad is None:
                    continue
                deviation = parameter.grad.std(correction=0)
                parameter.grad.mul_(factor)
                if self.noise:
                    if self._generator is None:  # a separate generator, for the same draws in every process
                        self._generator = torch.Generator(parameter.device).manual_seed(self.seed)
                    drawn = torch.empty_like(parameter.grad).normal_(generator=self._generator)
                    parameter.grad.add_(drawn * deviation)


class MSLR(Joint):
    """Modality-specific learning rates (Yao and Mihalcea, 2022, strategy *keep*): each encoder keeps the learning rate that
    is best when its modality is trained alone. ``rates``: modality → multiple of the common rate.
    """

    name = "mslr"
    title = "MSLR"

    def __init__(self, rates: Mapping[str, float]) -> None:
        super().__init__()
        self.rates = dict(rates)

    def parameter_groups(self, model: nn.Module, rate: float) -> list[dict[str, Any]]:
        encoders = _parts(model, "encoders", self.rates, "MSLR gives each encoder its own rate")
        groups: list[dict[str, Any]] = [
            {"params": list(encoders[name].parameters()), "lr": rate * factor} for name, factor in self.rates.items()
        ]
        own = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
        self.coefficients = dict(self.rates)
        return [*groups, {"params": rest, "lr": rate}]


class MSES(Joint):
    """Modality-specific early stopping (Fujimori et al., 2020): an encoder, including its BatchNorm, is frozen once the
    validation loss of its modality's own output has not improved for ``patience`` epochs.
    """

    name = "mses"
    title = "MSES"

    def __init__(self, patience: int = 3) -> None:
        super().__init__()
        self.patience = patience
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}

    def _stopped(self, model: nn.Module) -> list[nn.Module]:
        stopped = [name for name, factor in self.coefficients.items() if factor == 0.0]
        encoders = _parts(model, "encoders", self.coefficients, "MSES stops encoders") if stopped else {}
        return [encoders[name] for name in stopped]

    def forward(self, model: nn.Module, given: dict[str, Tensor], inputs: Inputs, targets: Tensor) -> Tensor:
        with ExitStack() as stack:
            for encoder in self._stopped(model):
                stack.enter_context(muted(encoder))
            return super().forward(model, given, inputs, targets)

    def adjust(self, model: nn.Module) -> None:
        # Zero gradients would let momentum and decay continue; requires_grad=False breaks DistributedDataParallel.
        for encoder in self._stopped(model):
            for parameter in encoder.parameters():
                parameter.grad = None

    def end_epoch(self, model: nn.Module, losses: Mapping[str, float]) -> None:
        _parts(model, "encoders", losses, "MSES stops encoders")
        for name, loss in losses.items():
            if loss < self._best.get(name, float("inf")):
                self._best[name], self._waited[name] = loss, 0
            else:
                self._waited[name] = self._waited.get(name, 0) + 1
            if self._waited[name] >= self.patience:
                self.coefficients[name] = 0.0


def _parts(model: nn.Module, part: str, modalities: Mapping[str, Any], why: str) -> Mapping[str, nn.Module]:
    """``model.encoders`` or ``model.heads``. Raises a `UserError` that begins with ``why`` unless it has a module per
    modality.
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    found = getattr(bare, part, None)
    if not isinstance(found, nn.ModuleDict) or any(name not in found for name in modalities):
        names = ", ".join(modalities)
        raise UserError(f"{why}: the model must have {part}, a ModuleDict with an entry per modality ({names})")
    return dict(found.items())
