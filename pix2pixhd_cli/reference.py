"""The reference's networks and ours, layer by layer: names, order, the layout of weights, and what their shapes tell."""

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.errors import P2PHDError

Weights = Mapping[str, NDArray[np.floating]]


def assign(network: keras.Model, state: Weights) -> None:
    """Set a network's weights from the reference's state dict; raises `P2PHDError` naming a layer that does not fit."""
    ordered = in_our_order(state)
    variables = network.weights
    for (name, value), variable in zip(ordered.items(), variables, strict=False):
        # (O, I, h, w) and a transposed convolution's (I, O, h, w) both become (h, w, …) with their first two axes swapped.
        array = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if array.shape != tuple(variable.shape):
            raise P2PHDError(
                f"layer {name} has shape {value.shape}, which fits no {variable.path} of {tuple(variable.shape)}"
            )
        variable.assign(array)
    if len(ordered) > len(variables):
        raise P2PHDError(f"unexpected layer {list(ordered)[len(variables)]}")
    if len(ordered) < len(variables):
        raise P2PHDError(f"missing layer: nothing is left for {variables[len(ordered)].path}")


def in_our_order(state: Weights) -> dict[str, NDArray[np.floating]]:
    """Weights and biases in the order of our networks: files have it but for the discriminator, whose highest scale is the
    finest and stands first here. What instance norm of old kept (running statistics) is left out.
    """
    kept = {name: value for name, value in state.items() if name.endswith((".weight", ".bias"))}
    return dict(sorted(kept.items(), key=lambda entry: -_scale(entry[0])))


def _scale(name: str) -> int:
    found = re.match(r"(?:scale|layer)(\d+)[._]", name)
    return int(found[1]) if found else 0


def infer_generator(state: Weights) -> dict[str, Any]:
    """The generator settings that a state dict's shapes tell, and `inputs`, its input channels."""
    enhancers = max((int(match[1]) for name in state if (match := re.match(r"model(\d+)_1\.", name))), default=0)
    plain = _kernels(state, r"model\.\d+\.weight")
    strided = [kernel for kernel in plain if kernel.shape[2] == 3]
    _refuse_unknown_norm(state)
    found: dict[str, Any] = {
        "kind": "local" if enhancers else "global",
        "filters": plain[0].shape[0] >> enhancers,
        "downsamplings": len(strided) // 2,
        "blocks": len(_kernels(state, r"model\.\d+\.conv_block\.\d+\.weight")) // 2,
        "inputs": plain[0].shape[1],
    }
    if enhancers:
        found["enhancers"] = enhancers
        found["local_blocks"] = len(_kernels(state, r"model1_2\.\d+\.conv_block\.\d+\.weight")) // 2
    return found


def infer_encoder(state: Weights) -> dict[str, Any]:
    """The encoder settings that a state dict's shapes tell."""
    kernels = _kernels(state, r"model\.\d+\.weight")
    _refuse_unknown_norm(state)
    strided = [kernel for kernel in kernels if kernel.shape[2] == 3]
    return {"filters": kernels[0].shape[0], "downsamplings": len(strided) // 2, "channels": kernels[-1].shape[0]}


def infer_discriminator(state: Weights) -> dict[str, Any]:
    """The discriminator settings that a state dict's shapes tell, and `inputs`, its input channels."""
    first = _kernels(state, r"(scale0_layer|layer0[._]).*weight")
    scales = {_scale(name) for name in state}
    _refuse_unknown_norm(state)
    return {
        "filters": first[0].shape[0],
        "layers": len(first) - 2,
        "scales": len(scales),
        "inputs": first[0].shape[1],
    }


def _kernels(state: Weights, pattern: str) -> list[NDArray[np.floating]]:
    found = [value for name, value in state.items() if value.ndim == 4 and re.fullmatch(pattern, name)]
    if not found and "conv_block" not in pattern:
        raise P2PHDError("holds no such network: the layers it has are " + ", ".join(list(state)[:3]) + " …")
    return found


def _refuse_unknown_norm(state: Weights) -> None:
    normed = next((name for name, value in state.items() if value.ndim == 1 and name.endswith("running_mean")), None)
    if normed is not None:
        raise P2PHDError(f"layer {normed} belongs to a batch normalisation; only instance normalisation is imported")
