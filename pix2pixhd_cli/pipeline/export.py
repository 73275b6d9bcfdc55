"""`p2phd export`: a run becomes a SavedModel, and perhaps an ONNX file, that needs nothing of this package."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import tensorflow as tf

from pix2pixhd_cli import console, engine
from pix2pixhd_cli.data.files import staging_folder, take_place
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.mirror import MODEL, at_any_place
from pix2pixhd_cli.model.pix2pixhd import Batch, Pix2PixHD
from pix2pixhd_cli.painting import Painter

ONNX_OPSET = 17


class Exported(tf.Module):
    """The generator with its conditioning inside the graph."""

    def __init__(self, model: Pix2PixHD) -> None:
        super().__init__()
        self.weights = [weight.value for weight in model.generator.weights]
        self._model = model

    def paint(self, label: tf.Tensor, instance: tf.Tensor, features: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Class ids (or RGB inputs), instance ids and perhaps a feature map to pictures, float32 [B, H, W, 3] in [-1, 1]."""
        model = self._model
        if features is None and model.encoder is not None:
            features = tf.zeros(tf.concat([tf.shape(instance), [model.encoder.channels]], 0))
        batch = Batch(label, instance, tf.zeros([1, 1, 1, 3]))
        return {"picture": model.generate(model.condition(batch), features)}


@at_any_place(MODEL)
def export(run: Path, folder: Path, *, onnx: bool = False) -> None:
    """Write `folder` as a SavedModel, and with `onnx` also `folder/model.onnx`.

    Its signature `serving_default` takes `label`, int32 [B, H, W] (uint8 [B, H, W, 3] for RGB inputs), and `instance`, int32
    [B, H, W], and gives `picture`, float32 [B, H, W, 3] in [-1, 1]; runs with an encoder have `with_features` too, which also
    takes `features`, float32 [B, H, W, channels] (zero otherwise). Sides must divide as the networks need. The ONNX file
    takes and gives the same. Raises `P2PHDError`, also if the extra `onnx` is not installed.
    """
    if onnx and find_spec("tf2onnx") is None:
        raise P2PHDError("--onnx needs its extra: pip install 'pix2pixhd_cli[onnx]'")
    painter = Painter(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise P2PHDError(f"{folder}: holds other files; name a new or empty folder for the SavedModel")
    module, model = Exported(painter.model), painter.model
    inputs = {
        "label": tf.TensorSpec([None, None, None], tf.int32, "label")
        if model.labels
        else tf.TensorSpec([None, None, None, 3], tf.uint8, "label"),
        "instance": tf.TensorSpec([None, None, None], tf.int32, "instance"),
    }
    signatures = {"serving_default": tf.function(module.paint).get_concrete_function(**inputs)}
    if model.encoder is not None:
        inputs["features"] = tf.TensorSpec([None, None, None, model.encoder.channels], tf.float32, "features")
        signatures["with_features"] = tf.function(module.paint).get_concrete_function(**inputs)
    with staging_folder(folder) as staging:
        try:
            tf.saved_model.save(module, str(staging), signatures=signatures)
        except tf.errors.OpError as error:
            raise P2PHDError(f"{folder}: cannot be written ({engine.reason(error)})") from None
        if onnx:
            _write_onnx(module, list(inputs.values()), staging / "model.onnx")
        take_place(staging, folder)
    console.info(f"wrote {folder}: signatures {', '.join(signatures)}; sides must divide by {painter.multiple}")


def _write_onnx(module: Exported, inputs: Sequence[tf.TensorSpec], path: Path) -> None:
    import tf2onnx

    tf2onnx.convert.from_function(tf.function(module.paint), list(inputs), opset=ONNX_OPSET, output_path=str(path))
