"""Small networks with one structure each, by factory: a name, the module, an example of two samples, and the true reasons for
what is left whole, by layer; {} where everything is pruned that some layer reads.
"""

# ruff: noqa: ARG005

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

__all__ = ["ZOO"]

Entry = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]
ZOO: dict[str, Entry] = {}

IMAGE = (2, 3, 12, 12)
UNRUN = "attention that does not run its layers (MultiheadAttention)"
FIXED = "the network's code depends on how many there are: the pruned network fails (RuntimeError)"


class Of(nn.Module):
    """``forward(self, x)`` with the parts as attributes."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def add(
    name: str,
    forward: Callable[[Any, Tensor], Any],
    parts: Callable[[], dict[str, nn.Module]],
    shape: tuple[int, ...] = IMAGE,
    whole: dict[str, str] | None = None,
) -> None:
    assert name not in ZOO
    ZOO[name] = (lambda: Of(forward, **parts()), shape, whole or {})


C, L = nn.Conv2d, nn.Linear


def pooled(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)))


def ends(width: int, **more: nn.Module) -> dict[str, nn.Module]:
    """A first convolution of 8 channels, and behind ``width`` channels a convolution and the head."""
    return {"a": C(3, 8, 3, padding=1), "b": C(width, 6, 3), "f": L(6, 5), **more}


def between(name: str, how: Callable[[Any, Tensor], Tensor], width: int = 8, whole: Any = None, **more: Any) -> None:
    """``how`` between two convolutions."""
    add(
        name,
        lambda s, x: s.f(pooled(F.relu(s.b(how(s, F.relu(s.a(x))))))),
        lambda: ends(width, **{key: make() for key, make in more.items()}),
        whole=whole,
    )


# Broadcasting --------------------------------------------------------------------------------------------------------------
between("one-channel mask", lambda s, x: torch.sigmoid(s.m(x)) * x, m=lambda: C(8, 1, 1))
between("one-channel mask, expanded", lambda s, x: torch.sigmoid(s.m(x)).expand_as(x) * x, m=lambda: C(8, 1, 1))
between(
    "spatial attention",
    lambda s, x: x * torch.sigmoid(s.m(torch.cat([x.mean(1, True), x.amax(1, True)], 1))),
    whole={"a": "mixed by mean across components by Of"},
    m=lambda: C(2, 1, 3, padding=1),
)
between("one slope for all channels", lambda s, x: s.p(x - 0.3), p=nn.PReLU)
between("a slope for each channel", lambda s, x: s.p(x - 0.3), p=lambda: nn.PReLU(8))
between("squeeze and excite", lambda s, x: x * torch.sigmoid(s.u(F.relu(s.d(x.mean((2, 3), True))))),
        d=lambda: C(8, 4, 1), u=lambda: C(4, 8, 1))  # fmt: skip
between("channel attention of one kernel", lambda s, x: x * torch.sigmoid(
    s.k(x.mean((2, 3))[:, None])[:, 0, :, None, None]),
    whole={"a": "mixed across components by k (Conv1d)"}, k=lambda: nn.Conv1d(1, 1, 3, padding=1))  # fmt: skip

# Concatenating and splitting -------------------------------------------------------------------------------------------------
between("dense concatenation", lambda s, x: torch.cat([x, F.relu(s.c(x))], 1), 14, c=lambda: C(8, 6, 3, padding=1))
between("chunk and concatenate", lambda s, x: (lambda y: torch.cat([y[0], s.c(y[1])], 1))(x.chunk(2, 1)), 10,
        c=lambda: C(4, 6, 3, padding=1))  # fmt: skip
between("C2f", lambda s, x: (lambda y: torch.cat([*y, y[1] + F.relu(s.c(y[1]))], 1))(x.chunk(2, 1)), 12,
        c=lambda: C(4, 4, 3, padding=1))  # fmt: skip
between("CSP", lambda s, x: torch.cat([s.c(x), s.e(F.relu(s.d(x)))], 1), 10, c=lambda: C(8, 4, 1),
        d=lambda: C(8, 6, 1), e=lambda: C(6, 6, 3, padding=1))  # fmt: skip
between("parts of a size written down", lambda s, x: (lambda y: torch.cat([y[0], s.c(y[1])], 1))(x.split((3, 5), 1)),
        9, {"a": FIXED, "a/2": FIXED}, c=lambda: C(5, 6, 3, padding=1))  # fmt: skip
between("halves by index", lambda s, x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :], 4)
between("shuffled channels", lambda s, x: x.reshape(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2), 8,
        {"a": FIXED})  # fmt: skip

# Gates -----------------------------------------------------------------------------------------------------------------------
between("gated halves", lambda s, x: (lambda y: F.gelu(y[0]) * y[1])(s.i(x).chunk(2, 1)), 6, i=lambda: C(8, 12, 1))
between("GLU", lambda s, x: F.glu(s.i(x), 1), 6, i=lambda: C(8, 12, 1))
between("gated halves behind a depthwise convolution",
        lambda s, x: (lambda y: F.gelu(y[0]) * y[1])(s.d(s.i(x)).chunk(2, 1)), 6, i=lambda: C(8, 12, 1),
        d=lambda: C(12, 12, 3, padding=1, groups=12))  # fmt: skip
add("SwiGLU of one layer", lambda s, x: s.f((lambda y: s.o(F.silu(y[0]) * y[1]))(s.i(x).chunk(2, -1))).mean(1),
    lambda: {"i": L(8, 24), "o": L(12, 8), "f": L(8, 5)}, (2, 7, 8))  # fmt: skip
add("SwiGLU of two layers", lambda s, x: s.f(s.o(F.silu(s.g(x)) * s.i(x))).mean(1),
    lambda: {"i": L(8, 12), "g": L(8, 12), "o": L(12, 8), "f": L(8, 5)}, (2, 7, 8))  # fmt: skip

# Pixels and channels ---------------------------------------------------------------------------------------------------------
between("pixel shuffle", lambda s, x: s.p(s.i(x)), 3, i=lambda: C(8, 12, 1), p=lambda: nn.PixelShuffle(2))
between("pixel unshuffle", lambda s, x: s.p(x), 32, p=lambda: nn.PixelUnshuffle(2))
between("space to depth by reshaping", lambda s, x: x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3)
        .flatten(1, 3), 32)  # fmt: skip
add("flattened", lambda s, x: s.f(F.relu(s.b(F.relu(s.a(x)).flatten(1)))),
    lambda: {"a": C(3, 8, 3, 3), "b": L(128, 6), "f": L(6, 5)})  # fmt: skip
add("flattened, channels last", lambda s, x: s.f(F.relu(s.b(F.relu(s.a(x)).permute(0, 2, 3, 1).flatten(1)))),
    lambda: {"a": C(3, 8, 3, 3), "b": L(128, 6), "f": L(6, 5)})  # fmt: skip
between("bilinear upsampling", lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear"))
between("pooling", lambda s, x: F.avg_pool2d(F.max_pool2d(x, 2), 2) + F.adaptive_avg_pool2d(x, 3))
between("reflected padding", lambda s, x: F.pad(x, (1, 1, 1, 1), mode="reflect"))
between("padded channels", lambda s, x: s.c(x) + F.pad(x, (0, 0, 0, 0, 2, 2)), 12, {"c": FIXED},
        c=lambda: C(8, 12, 3, padding=1))  # fmt: skip
add("bilinear pooling", lambda s, x: s.f((lambda y: (y @ y.mT).flatten(1))(F.relu(s.a(x)).flatten(2))),
    lambda: {"a": C(3, 4, 3), "f": L(16, 5)}, whole={"a": "f reads products of its channels"})  # fmt: skip

# Normalisation ---------------------------------------------------------------------------------------------------------------
between("batch normalisation", lambda s, x: F.relu(s.n(s.c(x))), 6, c=lambda: C(8, 6, 1, bias=False),
        n=lambda: nn.BatchNorm2d(6))  # fmt: skip
between("frozen batch normalisation", lambda s, x: s.n(x), n=lambda: FrozenBatchNorm2d(8))
between("group normalisation", lambda s, x: s.n(x), n=lambda: nn.GroupNorm(4, 8))
between("group normalisation without weights", lambda s, x: s.n(x), n=lambda: nn.GroupNorm(4, 8, affine=False))
between("a group for each channel", lambda s, x: s.n(x), n=lambda: nn.GroupNorm(8, 8))
between("one group", lambda s, x: s.n(x), whole={"a": "normalised or mixed across components by n (GroupNorm)"},
        n=lambda: nn.GroupNorm(1, 8))  # fmt: skip
between("instance normalisation", lambda s, x: s.n(x), n=lambda: nn.InstanceNorm2d(8))
between("instance normalisation with weights", lambda s, x: s.n(x), n=lambda: nn.InstanceNorm2d(8, affine=True))
between("layer normalisation", lambda s, x: s.n(x.movedim(1, -1)).movedim(-1, 1),
        whole={"a": "normalised or mixed across components by n (LayerNorm)"}, n=lambda: nn.LayerNorm(8))  # fmt: skip
between("softmax over channels", lambda s, x: x.softmax(1),
        whole={"a": "mixed by softmax across components by Of"})  # fmt: skip
between("weight normalisation", lambda s, x: F.relu(s.c(x)), 6, c=lambda: parametrizations.weight_norm(C(8, 6, 1)))
between("spectral normalisation", lambda s, x: F.relu(s.c(x)), 6, c=lambda: parametrizations.spectral_norm(C(8, 6, 1)))
between("weight normalisation by a hook", lambda s, x: F.relu(s.c(x)), 6, c=lambda: weight_norm(C(8, 6, 1)))
between("spectral normalisation by a hook", lambda s, x: F.relu(s.c(x)), 6, c=lambda: spectral_norm(C(8, 6, 1)))

# Other layers ----------------------------------------------------------------------------------------------------------------
add("waveform", lambda s, x: s.f(pooled(F.relu(s.b(F.relu(s.n(s.a(x))))))),
    lambda: {"a": nn.Conv1d(1, 8, 8, 4), "n": nn.BatchNorm1d(8), "b": nn.Conv1d(8, 6, 3), "f": L(6, 5)},
    (2, 1, 64))  # fmt: skip
add("video", lambda s, x: s.f(pooled(F.relu(s.b(F.relu(s.n(s.a(x))))))),
    lambda: {"a": nn.Conv3d(2, 8, 3), "n": nn.BatchNorm3d(8), "b": nn.Conv3d(8, 6, (2, 3, 1), 2), "f": L(6, 5)},
    (2, 2, 6, 8, 8))  # fmt: skip
between("transposed convolution", lambda s, x: F.relu(s.t(x)), 6,
        t=lambda: nn.ConvTranspose2d(8, 6, (4, 3), (2, 3), 1, (0, 1)))  # fmt: skip
between("grouped transposed convolution", lambda s, x: F.relu(s.t(x)), 12,
        t=lambda: nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=4))  # fmt: skip
add("transposed convolution of a waveform", lambda s, x: s.b(F.relu(s.t(F.relu(s.a(x))))),
    lambda: {"a": nn.Conv1d(1, 8, 8, 4), "t": nn.ConvTranspose1d(8, 6, 8, 4), "b": nn.Conv1d(6, 1, 3)},
    (2, 1, 64))  # fmt: skip
between("grouped convolution", lambda s, x: F.relu(s.c(x)), 12, c=lambda: C(8, 12, 3, groups=4))
between("a layer called twice", lambda s, x: F.relu(s.c(F.relu(s.c(x)))), c=lambda: C(8, 8, 3, padding=1))
add("a head shared by scales", lambda s, x: (lambda y: torch.cat([s.h(F.relu(s.n(z))).flatten(2) for z in
    (y, F.max_pool2d(F.relu(s.b(y)), 2))], 2))(F.relu(s.a(x))),
    lambda: {"a": C(3, 8, 3), "b": C(8, 8, 3, padding=1), "n": C(8, 6, 3), "h": C(6, 4, 1)})  # fmt: skip


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = C(3, 8, 3), C(8, 8, 3), C(8, 8, 3), C(8, 6, 3)
        self.c.weight = self.b.weight
        self.f = L(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(pooled(F.relu(self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))))))


ZOO["shared weights"] = (_Tied, IMAGE, dict.fromkeys("abc", "b shares a weight with c"))
between("recurrent layer", lambda s, x: s.r(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:]), 7,
        {"a": "read or written by r, a recurrent layer (LSTM)", "r": "a recurrent layer (LSTM), left whole"},
        r=lambda: nn.LSTM(8, 7, batch_first=True))  # fmt: skip

# Residual streams and attention ----------------------------------------------------------------------------------------------
between("residual connection", lambda s, x: x + F.relu(s.d(F.relu(s.c(x)))), c=lambda: C(8, 6, 3, padding=1),
        d=lambda: C(6, 8, 1))  # fmt: skip
between("scaled residual connection", lambda s, x: x + s.g[:, None, None] * s.c(x),
        c=lambda: C(8, 8, 3, padding=1), g=lambda: nn.Parameter(torch.rand(8) + 0.5))  # fmt: skip
between("written in place", lambda s, x: (lambda y: [y[:, 2:].add_(s.c(x)[:, 2:]), y][1])(x.clone()), 8, {"a": FIXED},
        c=lambda: C(8, 8, 3, padding=1))  # fmt: skip


class _Attention(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.e, self.qkv, self.o, self.f = L(6, 16), L(16, 48), L(16, 12), L(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.e(x))
        q, k, v = self.qkv(x).view(len(x), x.shape[1], 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, 4)
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bhqk,bhkd->bhqd", torch.softmax(q @ k.mT / 2, -1), v)
        return self.f(F.relu(self.o(y.transpose(1, 2).flatten(2)))).mean(1)


for _how in ("fused", "by hand"):
    ZOO[f"attention, {_how}"] = (lambda how=_how: _Attention(how), (2, 7, 6), {})  # type: ignore[misc]


class _Encoder(nn.Module):
    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.e, self.f = L(6, 8), L(8, 5)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
        self.t = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.t(self.e(x)).mean(1))


for _first in (False, True):
    ZOO[f"torch's encoder, {'pre' if _first else 'post'}-norm"] = (
        lambda first=_first: _Encoder(norm_first=first),  # type: ignore[misc]
        (2, 7, 6),
        {"e": f"read or written by t.layers.0.self_attn, {UNRUN}"}
        | {f"t.layers.{i}.self_attn": f"{UNRUN}, left whole" for i in range(2)},
    )  # fmt: skip
add("MLP over tokens", lambda s, x: s.f(s.e(x) + s.d(F.gelu(s.c(s.e(x).mT))).mT).mean(1),
    lambda: {"e": L(6, 8), "c": L(7, 10), "d": L(10, 7), "f": L(8, 5)}, (2, 7, 6),
    {"e": "c (Linear) runs on each of them by itself", "d": "f (Linear) runs on each of them by itself"})  # fmt: skip
