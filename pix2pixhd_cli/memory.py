"""The memory of a training step, told from its graph before any of it is taken.

Operations are gone through in the order in which they were traced, but variables are updated as soon as they can be. Each takes
memory for its results, unless these are views of what is there already or may take its place; what no other operation reads
any more is given back.
"""

import heapq
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, takewhile
from pathlib import Path

import tensorflow as tf
from tensorflow.python.client import device_lib
from tensorflow.python.eager.context import context

# Results that are views of an input.
VIEWS = frozenset(
    ("Bitcast", "CheckNumerics", "ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape", "Squeeze", "StopGradient")
)  # fmt: skip
# Results that are there already, or small.
FREE = frozenset(("Const", "NoOp", "Placeholder", "ReadVariableOp", "Shape", "VarHandleOp"))
# Element by element: a result takes the place of an input of its size that nothing else reads.
IN_PLACE = frozenset(
    (
        "Add", "AddN", "AddV2", "BiasAdd", "Cast", "LeakyRelu", "LeakyReluGrad", "Maximum", "Minimum", "Mul", "Neg", "RealDiv",
        "Relu", "ReluGrad", "Rsqrt", "RsqrtGrad", "Select", "SelectV2", "Sigmoid", "Sqrt", "SqrtGrad", "Square",
        "SquaredDifference", "Sub", "Tanh", "TanhGrad",
    )
)  # fmt: skip
UPDATES = ("ResourceApply", "Assign")
MEMORY, GROUP, GROUPS = map(Path, ("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup"))
LOADED = 650 << 20  # What a process takes that has loaded TensorFlow, on a CPU.
ROOM = 6  # Times the largest result: what operations at work, and pieces that fit nothing else, take; measured, see README.


def peak_of(graph: tf.Graph) -> int:
    """The most bytes that the results of a graph's operations take at a time, beside its inputs, variables and constants."""
    operations = _in_turn(_needed(graph))
    owner: dict[Hashable, Hashable] = {}  # Whose memory a tensor's values lie in.
    for operation in operations:
        for number, output in enumerate(operation.outputs):
            source = (
                output if operation.type not in VIEWS else operation.inputs[number * (operation.type == "IdentityN")]
            )
            owner[output.ref()] = owner.get(source.ref(), source.ref())
    uses = Counter(owner[tensor.ref()] for operation in operations for tensor in operation.inputs)
    uses.update(owner[tensor.ref()] for tensor in graph.outputs)
    sizes: dict[Hashable, int] = {}
    live = peak = 0
    for operation in operations:
        inputs = Counter(owner[tensor.ref()] for tensor in operation.inputs)
        last = [source for source, count in inputs.items() if uses[source] == count]
        made = {}
        for output in operation.outputs:
            if owner[output.ref()] == output.ref():
                made[output.ref()] = 0 if operation.type in FREE else bytes_of(output)
        replaces = operation.type in IN_PLACE and any(sizes[source] >= sum(made.values()) for source in last)
        peak = max(peak, live + (0 if replaces else sum(made.values())))
        sizes |= made
        uses.subtract(inputs)
        live += sum(made.values()) - sum(sizes.pop(name) for name in [*last, *(n for n in made if not uses[n])])
    return peak


def room_of(graph: tf.Graph) -> int:
    """The bytes that a graph's operations take beside their results, about."""
    return ROOM * max(bytes_of(output) for operation in _needed(graph) for output in operation.outputs)


def bytes_of(tensor: tf.Tensor | tf.Variable) -> int:
    """The bytes of a tensor's values; 0 if its shape is not known, or it holds none."""
    known = tensor.shape.is_fully_defined() and tensor.dtype not in (tf.resource, tf.variant, tf.string)
    return int(tensor.shape.num_elements()) * int(tensor.dtype.size) if known else 0


def _needed(graph: tf.Graph) -> list[tf.Operation]:
    """The operations that lead to results or change variables, as they were traced."""
    operations = graph.get_operations()
    coming = [tensor.op for tensor in graph.outputs]
    coming += [operation for operation in operations if operation.op_def.is_stateful and operation.type not in FREE]
    needed: set[tf.Operation] = set()
    while coming:
        operation = coming.pop()
        if operation not in needed:
            needed.add(operation)
            coming += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return [operation for operation in operations if operation in needed]


def _in_turn(operations: Sequence[tf.Operation]) -> list[tf.Operation]:
    """Updates of variables as soon as they can be, all else as it was traced."""
    waits: list[set[tf.Operation]] = []
    followers: dict[tf.Operation, list[int]] = {operation: [] for operation in operations}
    for number, operation in enumerate(operations):
        waits.append({*(tensor.op for tensor in operation.inputs), *operation.control_inputs})
        for other in waits[-1]:
            followers[other].append(number)
    left = [len(before) for before in waits]
    ready = [(False, number) for number, count in enumerate(left) if not count]
    order = []
    while ready:
        operation = operations[heapq.heappop(ready)[1]]
        order.append(operation)
        for number in followers[operation]:
            left[number] -= 1
            if not left[number]:
                heapq.heappush(ready, (not operations[number].type.startswith(UPDATES), number))
    return order


def total(of_device: int, devices: int) -> int:
    """What a step takes of a GPU or, where there is none, of the machine, if it takes so much of each of its devices."""
    return of_device if _has_gpus() else LOADED + devices * of_device


def available() -> int | None:
    """The bytes that training may take of the smallest GPU, or of this machine; None if nobody tells."""
    if _has_gpus():
        devices = device_lib.list_local_devices(context().config)  # Of those alone that this process sees.
        return min(int(device.memory_limit) for device in devices if device.device_type == "GPU")
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        resident = page * int(Path("/proc/self/statm").read_text().split()[1])
        return resident + min([1024 * _number(MEMORY, "MemAvailable:"), *_left_by_groups()])
    except (OSError, ValueError, StopIteration):
        return None


def _left_by_groups() -> Iterator[int]:
    """The bytes that containers and jobs leave: this process's control group and all above it, of either version."""
    for line in GROUP.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            top, limit, used = GROUPS, "memory.max", "anon"
        elif "memory" in kinds.split(","):
            top, limit, used = GROUPS / "memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        names = takewhile(lambda name: name != "..", path.strip("/").split("/"))
        for folder in accumulate(names, Path.joinpath, initial=top):
            if (folder / limit).exists() and (text := (folder / limit).read_text().strip()) != "max":
                yield int(text) - _number(folder / "memory.stat", used)  # What is cached of files makes room.


def _number(path: Path, name: str) -> int:
    """The number beside a name in one of the system's tables."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == name)


def _has_gpus() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))
