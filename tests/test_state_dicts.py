"""The reference's files: every format read without PyTorch, nothing in them run."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pix2pixhd_cli.data.state_dicts import LEGACY_MAGIC, read_class_dict, read_state_dict
from pix2pixhd_cli.errors import P2PHDError

GOLDEN = Path(__file__).parent / "golden"


class _Torch:
    """Pickles as PyTorch's own names, without PyTorch."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Tensor:
    def __init__(self, key: str, dtype: str, shape: tuple[int, ...], length: int, offset: int = 0) -> None:
        self.key, self.dtype, self.shape, self.length, self.offset = key, dtype, shape, length, offset


_Base: Any = vars(pickle)["_Pickler"]  # The one in Python, whose `save` can be overridden.


class _Pickler(_Base):
    """Writes `Tensor`s the way PyTorch does."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, _Torch):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
            return None
        if isinstance(obj, Tensor):
            strides = [int(np.prod(obj.shape[n + 1 :])) for n in range(len(obj.shape))]
            self.save(_Torch("torch._utils", "_rebuild_tensor_v2"))
            self.write(b"(")
            self.write(b"(")
            for part in ("storage", _Torch("torch", obj.dtype), obj.key, "cpu", obj.length, *self.extra):
                self.save(part)
            self.write(b"tQ")
            for part in (obj.offset, obj.shape, tuple(strides), False, {}):
                self.save(part)
            self.write(b"tR")
            return None
        return super().save(obj, save_persistent_id)


def pickled(value: Any, extra: tuple[Any, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, 2)
    pickler.extra = extra
    pickler.dump(value)
    return buffer.getvalue()


def write_zip(path: Path, data: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        for key, values in storages.items():
            archive.writestr(f"net/data/{key}", values)
    return path


VALUES = np.arange(24, dtype=np.float32)


@pytest.mark.parametrize(("dtype", "code"), [("FloatStorage", "<f4"), ("HalfStorage", "<f2"), ("DoubleStorage", "<f8")])
def test_zip_files_of_any_precision(tmp_path: Path, dtype: str, code: str) -> None:
    state = {"a.weight": Tensor("0", dtype, (2, 3, 4), 24), "a.bias": Tensor("0", dtype, (3,), 24, offset=5)}
    read = read_state_dict(write_zip(tmp_path / "n.pth", pickled(state), {"0": VALUES.astype(code).tobytes()}))
    np.testing.assert_array_equal(read["a.weight"], VALUES.reshape(2, 3, 4))
    np.testing.assert_array_equal(read["a.bias"], VALUES[5:8])
    assert {array.dtype for array in read.values()} == {np.dtype(np.float32)}


def test_legacy_files(tmp_path: Path) -> None:
    state = {"a.weight": Tensor("77", "HalfStorage", (4, 6), 24)}
    parts = [pickle.dumps(LEGACY_MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [
        pickled(state, extra=(None,)),
        pickle.dumps(["77"], 2),
        struct.pack("<q", 24),
        VALUES.astype("<f2").tobytes(),
    ]
    (tmp_path / "n.pth").write_bytes(b"".join(parts))
    np.testing.assert_array_equal(read_state_dict(tmp_path / "n.pth")["a.weight"], VALUES.reshape(4, 6))


def test_the_references_own_files_are_read_in_order() -> None:
    state = read_state_dict(GOLDEN / "global_generator_net_G.pth")
    assert list(state)[:3] == ["model.1.weight", "model.1.bias", "model.4.weight"]
    assert state["model.1.weight"].shape == (6, 6, 7, 7)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "owned", tmp_path / "n.pth"
    evil = pickle.dumps({"a.weight": Evil(mark)}, 2)
    if kind == "zip":
        write_zip(path, evil, {})
    else:
        path.write_bytes((pickle.dumps(LEGACY_MAGIC, 2) * 3 if kind == "legacy" else b"") + evil)
    with pytest.raises(P2PHDError, match=r"n.pth: refused: it asks for posix.system, which no state dict needs"):
        read_state_dict(path)
    assert not mark.exists()
    np.save(tmp_path / "features.npy", np.array({7: Evil(mark)}, object), allow_pickle=True)
    with pytest.raises(P2PHDError, match=r"features.npy: refused"):
        read_class_dict(tmp_path / "features.npy")
    assert not mark.exists()


def test_a_tensor_that_reaches_out_of_its_storage_is_refused(tmp_path: Path) -> None:
    for tensor in (Tensor("0", "FloatStorage", (5, 5), 24), Tensor("0", "FloatStorage", (2,), 24, offset=-1)):
        path = write_zip(tmp_path / "n.pth", pickled({"a": tensor}), {"0": VALUES.tobytes()})
        with pytest.raises(P2PHDError, match=r"does not fit its 24 values|something else than tensors"):
            read_state_dict(path)


def test_truncated_files(tmp_path: Path) -> None:
    whole = (GOLDEN / "encoder_net_E.pth").read_bytes()
    for length in (0, 10, 1000, len(whole) - 50):
        (tmp_path / "n.pth").write_bytes(whole[:length])
        with pytest.raises(P2PHDError, match=r"n.pth: (refused|truncated or damaged)"):
            read_state_dict(tmp_path / "n.pth")


def test_class_dicts(tmp_path: Path) -> None:
    content = {7: np.arange(8.0).reshape(2, 4), 26: np.zeros((0, 4))}
    np.save(tmp_path / "f.npy", np.array(content, object), allow_pickle=True)
    read = read_class_dict(tmp_path / "f.npy")
    assert list(read) == [7, 26]
    np.testing.assert_array_equal(read[7], content[7])


def test_bombs_are_refused(tmp_path: Path) -> None:
    """A few bytes that ask for gigabytes: numbered objects, repeated tensors, repeated text, and claims without values."""
    state = {"a": Tensor("0", "FloatStorage", (24,), 24)}
    numbered = pickled(state)[:-1] + b"r\xff\xff\xff\x7f."
    repeated = pickled({str(n): Tensor("0", "FloatStorage", tuple([24]), 24) for n in range(100)})  # noqa: C409
    for data, message in ((numbered, "numbers more objects"), (repeated, "claim more values")):
        path = write_zip(tmp_path / "n.pth", data, {"0": VALUES.tobytes()})
        with pytest.raises(P2PHDError, match=rf"n.pth: .*{message}"):
            read_state_dict(path)
    with zipfile.ZipFile(tmp_path / "n.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", pickled(state), zipfile.ZIP_STORED)
        archive.writestr("net/data/0", bytes(1 << 20))
    with pytest.raises(P2PHDError, match="its tensors are compressed"):
        read_state_dict(tmp_path / "n.pth")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
    encodings = (
        b"c_codecs\nencode\n("
        + text
        + b"q\x00X\x06\x00\x00\x00latin1tR"
        + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 50
    )
    (tmp_path / "f.npy").write_bytes(head.getvalue() + b"\x80\x02" + encodings + b".")
    with pytest.raises(P2PHDError, match="refused: it claims more bytes than it holds"):
        read_class_dict(tmp_path / "f.npy")


@pytest.mark.parametrize("key", [b"h\x01", b"2"], ids=["numbered", "doubled"])
def test_names_of_themselves_twice_are_refused(tmp_path: Path, key: bytes) -> None:
    """A tuple of a tuple twice, thirty times over, takes no room, and for ever to compare or print."""
    laughs = (
        b"\x80\x02}K\x01K\x02\x86q\x01" + (key + b"\x86q\x01" if key == b"2" else b"h\x01\x86q\x01") * 30 + b"K\x01s."
    )
    with pytest.raises(P2PHDError, match="refused: it repeats itself"):
        read_state_dict(write_zip(tmp_path / "n.pth", laughs, {}))


def test_tuples_that_are_nested_too_deep_are_refused(tmp_path: Path) -> None:
    """Comparing them would overflow the interpreter's stack and end it."""
    for nest in (b"\x85" * 1_000_000, b"K\x02\x86" * 1_000_000):
        with pytest.raises(P2PHDError, match="refused: it is nested too deep"):
            read_state_dict(write_zip(tmp_path / "n.pth", b"\x80\x02}K\x01" + nest + b"K\x01s.", {}))


def test_a_tensor_that_claims_to_be_packed_large_is_refused(tmp_path: Path) -> None:
    """Found by an hour of damages: 12 bytes whose packed size was said to be 128 MiB."""
    state = {"a": Tensor("0", "FloatStorage", (24,), 24)}
    path = write_zip(tmp_path / "n.pth", pickled(state), {"0": VALUES.tobytes()})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = struct.pack("<I", 1 << 27)
    path.write_bytes(data)
    with pytest.raises(P2PHDError, match="claim to be larger than it is"):
        read_state_dict(path)
