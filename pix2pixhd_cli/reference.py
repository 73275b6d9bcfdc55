"""The reference's networks and ours, layer by layer: names, order, the layout of weights, and what their shapes tell."""

import re
from collections.abc import Mapping, Sequence
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
    if len(ordered) != len(variables):
        raise P2PHDError(f"holds {len(ordered)} weights and biases instead of {len(variables)}")


def in_our_order(state: Weights) -> dict[str, NDArray[np.floating]]:
    """Weights and biases in the order of our networks: files have it but for the discriminator, whose highest scale is the
    finest and stands first here. What instance norm of old kept (running statistics) is left out.
    """
    return dict(sorted(_kept(state).items(), key=lambda entry: -_scale(entry[0])))


def check_names(state: Weights, layers: Sequence[str]) -> dict[str, NDArray[np.floating]]:
    """The state dict in the order of `layers`; raises `P2PHDError` naming a layer that is missing, or one too many."""
    wanted = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    kept = _kept(state)
    missing = [name for name in wanted if name not in kept]
    unexpected = [name for name in kept if name not in set(wanted)]
    if missing or unexpected:
        parts = [f"missing layer {missing[0]}"] if missing else []
        parts += [f"unexpected layer {unexpected[0]}"] if unexpected else []
        raise P2PHDError(" and ".join(parts))
    return {name: kept[name] for name in wanted}


def generator_layers(
    *, kind: str, downsamplings: int, blocks: int, enhancers: int = 0, local_blocks: int = 0, **_: Any
) -> list[str]:
    """The names of a generator's (or encoder's) layers in the reference, in the order of our networks."""
    first_block, first_up = 4 + 3 * downsamplings, 4 + 3 * downsamplings + blocks
    numbers: list[object] = [1, *(4 + 3 * n for n in range(downsamplings))]
    numbers += [f"{first_block + n}.conv_block.{k}" for n in range(blocks) for k in (1, 5)]
    numbers += [first_up + 3 * n for n in range(downsamplings)]
    if kind == "global":
        return [f"model.{n}" for n in [*numbers, first_up + 3 * downsamplings + 1]]
    names = [f"model.{n}" for n in numbers]
    for level in range(1, enhancers + 1):
        names += [f"model{level}_1.{n}" for n in (1, 4)]
        names += [f"model{level}_2.{n}.conv_block.{k}" for n in range(local_blocks) for k in (1, 5)]
        names.append(f"model{level}_2.{local_blocks}")
    return [*names, f"model{enhancers}_2.{local_blocks + 4}"]


def discriminator_layers(state: Weights, *, layers: int, scales: int, **_: Any) -> list[str]:
    """The names of a discriminator's layers in the reference, finest scale first; they differ without feature matching."""
    if any(name.startswith("scale") for name in state):
        return [f"scale{s}_layer{n}.0" for s in reversed(range(scales)) for n in range(layers + 2)]
    return [f"layer{s}.{n}" for s in reversed(range(scales)) for n in (0, *(2 + 3 * k for k in range(layers + 1)))]


def _kept(state: Weights) -> dict[str, NDArray[np.floating]]:
    """All but the running statistics that instance norm of old kept."""
    dropped = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in state.items() if not name.endswith(dropped)}


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
    """Running statistics beside a scale are batch normalisation's; alone they are instance normalisation's of old."""
    for name in state:
        if name.endswith(".running_mean") and f"{name.removesuffix('running_mean')}weight" in state:
            raise P2PHDError(f"layer {name} belongs to a batch normalisation; only instance normalisation is imported")
