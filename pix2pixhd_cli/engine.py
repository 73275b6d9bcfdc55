"""Brings TensorFlow in without its start-up chatter, and tells a user what is wrong if it cannot be brought in."""

import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pix2pixhd_cli import __version__
from pix2pixhd_cli.errors import P2PHDError


def start(verbose: bool = False) -> None:
    """Import TensorFlow and Keras with the TensorFlow backend; `verbose` lets them talk."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # A record is read at a time, and weighs a megabyte or two; TensorFlow would fetch 64 of them around it.
    os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(4 << 20))
    if verbose:
        _import()
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silenced_standard_error():
        _import()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def make_deterministic(seed: int) -> None:
    """The same numbers from the same seed, run after run."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def threads() -> int:
    """How many threads TensorFlow works with on one operation of a CPU."""
    asked = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """The versions that a training works with, by name, and the system."""
    import keras
    import numpy
    import tensorflow as tf

    return {
        "p2phd": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _import() -> None:
    # Keras would bring in scikit-learn, for wrappers that nothing here uses: a second and 60 MB of every command's start.
    absent = sys.modules.get("sklearn") is None
    if absent:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise P2PHDError(f"TensorFlow cannot be loaded ({error}); install it with `pip install tensorflow`") from None
    finally:
        if absent:
            del sys.modules["sklearn"]


@contextmanager
def _silenced_standard_error() -> Iterator[None]:
    """Send file descriptor 2 nowhere: the first lines come from C++ before any log level is read."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def reason(error: Exception) -> str:
    """What TensorFlow says of a file that failed, such as `No space left on device`, without file and operation."""
    return str(getattr(error, "message", error)).rpartition(";")[2].partition(" [Op:")[0].strip()
