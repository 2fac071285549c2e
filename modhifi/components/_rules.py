"""Which of torch's operations move entries, which work entry by entry, and which reduce or mix; see `Labels`. Those that are in
no list and made of others are followed through these.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ELEMENTWISE", "FREE", "MOVES", "PRODUCTS", "REDUCTIONS", "along"]

MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "expand",
        "squeeze",
        "unsqueeze",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unbind",
        "cat",
        "stack",
        "constant_pad_nd",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "roll",
        "flip",
        "index",
        "index_select",
        "gather",
        "unfold",
        "repeat",
        "repeat_interleave",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "im2col",
        "diagonal",
        "tril",
        "triu",
        "embedding",
        "as_strided",
        "select_scatter",
        "slice_scatter",
    ]
)

# Entry by entry, though torch does not tag them as that.
ELEMENTWISE = frozenset(
    [
        "clone",
        "detach",
        "alias",
        "contiguous",
        "lift_fresh",
        "_to_copy",
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "masked_fill",
        "where",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "prelu",
        "_prelu_kernel",
        "relu6",
        "gelu",
        "silu",
        "mish",
        "softplus",
        "threshold",
        "log_sigmoid",
        "rrelu",
    ]
)

FREE = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand",
        "rand_like",
        "new_empty_strided",
        "empty_strided",
        "bernoulli",
    ]
)

# Along an axis that they keep, or that they reduce.
REDUCTIONS = frozenset(
    [
        "softmax",
        "_softmax",
        "log_softmax",
        "_log_softmax",
        "cumsum",
        "layer_norm",
        "native_layer_norm",
        "rms_norm",
        "_fused_rms_norm",
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "prod",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "argmax",
        "argmin",
        "sort",
        "topk",
        "median",
        "_weight_norm_interface",
    ]
)


PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm"})


def along(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of an operation by their names in its schema, with their defaults."""
    schema = func._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    named: dict[str, Any] = (
        given | {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
    )
    return named
