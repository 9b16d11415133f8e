"""Malicious, mutilated and wrong files: no code is run, and one line says what is wrong."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weight_files import assert_same_weights, mvit_file, mvit_state, without_windows

from mvitv2_det import MViT, UserError, convert_weights, load_weights
from mvitv2_det.weights.files import read_weights
from mvitv2_det.weights.unpickle import load_arrays


class Attack:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def refused(path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_weights(torch.nn.Module(), path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.fixture
def weights():
    return mvit_state(without_windows())


def zoo_file(weights, **more) -> dict:
    return {"model": {name: weight.numpy() for name, weight in weights.items()}} | {
        "__author__": "me",
        "matching_heuristics": True,
        **more,
    }


@pytest.mark.parametrize("kind", ["pkl", "zip", "legacy"])
def test_no_code_is_run(kind, weights, tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    if kind == "pkl":
        path.write_bytes(pickle.dumps(zoo_file(weights, extra=Attack(trace))))
    else:
        content = mvit_file(weights) | {"extra": Attack(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, r"refused because it wants to run (posix|nt)\.system;")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.", "builtins.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "numpy.ndarray.dump"),
    ],
)
def test_names_that_pickles_may_not_use(content, name):
    with pytest.raises(UserError, match=f"wants to run {name};"):
        load_arrays(content)


def test_arrays_of_objects_and_false_sizes():
    with pytest.raises(pickle.UnpicklingError, match="'O8', which are no numbers"):
        load_arrays(pickle.dumps(np.array([{}], dtype=object)))
    genuine = pickle.dumps(np.arange(3, dtype=np.int32), protocol=2)
    assert genuine.count(b"K\x03\x85") == 1
    with pytest.raises(ValueError, match="cannot reshape"):
        load_arrays(genuine.replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"))
    # The shape that NumPy would allocate before it looks at the bytes.
    assert genuine.count(b"K\x00\x85") == 1
    huge = load_arrays(genuine.replace(b"K\x00\x85", b"\x8a\x06\0\0\0\0\0\x10\x85"))
    assert huge.tolist() == [0, 1, 2]


def test_lengths_beyond_the_end():
    """The unpickler would allocate them first."""
    with pytest.raises(ValueError, match="expected 1152921504606846976 bytes"):
        load_arrays(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.")
    with pytest.raises(ValueError, match="memo 2147483647"):
        load_arrays(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(ValueError, match="memo 300000000"):
        load_arrays(b"\x80\x02}p300000000\n.")


def test_containers_that_are_shared_are_read_once():
    """Forty lists of twice the same list are 2⁴⁰ entries, one that has itself is without end."""
    chain: list = [np.ones(2)]
    for _ in range(40):
        chain = [chain, chain]
    read = load_arrays(pickle.dumps({"model": chain}))["model"]
    assert read[0] is read[1]
    circle: list = []
    circle.append((circle,))
    read = load_arrays(pickle.dumps(circle))
    assert read[0][0] is read


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch drops such tensors soon
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda weight: weight.to_sparse(), "sparse"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "quantised"),
        (lambda weight: weight.to("meta"), "on the meta device"),
        (lambda weight: weight.to(torch.complex64), "complex"),
    ],
)
def test_tensors_that_are_no_dense_numbers(make, kind, weights, tmp_path):
    """In a used place: one line, and no weight is changed; in another they are in nobody's way."""
    name = "blocks.0.attn.qkv.weight"
    model = without_windows()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    content = weights | {name: make(weights[name])}
    with pytest.raises(UserError, match=rf"{name} is {kind}.*; expected a dense tensor"):
        load_weights(model, content)
    with pytest.raises(UserError, match=rf"{name} is {kind}"):
        convert_weights(content, tmp_path / "converted.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    load_weights(model, weights | {"extra": make(torch.ones(2))})


def test_values_that_are_not_finite_are_named(weights, caplog):
    weights["blocks.0.attn.qkv.weight"][0, 0] = float("nan")
    weights["blocks.1.norm1.bias"][0] = float("inf")
    load_weights(without_windows(), weights)
    (message,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert message.startswith("2 of the tensors of weights given have values that are not finite")
    assert "blocks.0.attn.qkv.weight" in message and "blocks.1.norm1.bias" in message


def test_names_are_shown_without_control_characters(weights, caplog):
    caplog.set_level("INFO")
    with_escape = weights | {"blocks.0.\x1b[2J\x07": torch.ones(1)}
    load_weights(without_windows(), with_escape)
    assert "\x1b" not in caplog.text and r"\x1b[2J\x07" in caplog.text


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("numpy_version", [1, 2])
def test_genuine_pickles(protocol, numpy_version):
    content = OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3),
        f=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        half=np.ones(2, np.float16),
        big=np.arange(3, dtype=">f4"),
        empty=np.zeros((0, 4)),
        scalar=np.float32(1.5),
        plain=[1, 2.5, "x", None, True, (b"x", {"y": 2})],
    )
    packed = pickle.dumps(content, protocol=protocol)
    if protocol < 4:  # Modules are named by lines there, without lengths.
        core = b"numpy._core" if numpy_version == 2 else b"numpy.core"
        packed = packed.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)
    read = load_arrays(packed)
    assert list(read) == list(content)
    for name, value in content.items():
        np.testing.assert_equal(read[name], value)


def test_pickle_of_python_2():
    """Bytes as text, as the oldest files of Detectron2's model zoo have them."""
    data = np.array([1.0, 2.0], np.float32).tobytes()
    packed = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + data + b"tbs."
    )
    assert load_arrays(packed)["w"].tolist() == [1.0, 2.0]


def write(kind: str, weights, path) -> None:
    if kind == "pkl":
        path.write_bytes(pickle.dumps(zoo_file(weights)))
    elif kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(mvit_file(weights), path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["pkl", "safetensors", "zip", "legacy"])
def test_kinds_and_cut_off_files(kind, weights, tmp_path):
    """Each kind is told by its content; cut anywhere, it is refused."""
    path = tmp_path / "model.any"
    write(kind, weights, path)
    assert_same_weights(read_weights(path), weights)
    whole = path.read_bytes()
    for share in (0.0, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "no checkpoint|cut off or damaged|it is damaged|no torch file")


@pytest.mark.parametrize("kind", ["pkl", "safetensors", "zip", "legacy"])
def test_damaged_files(kind, tmp_path):
    """Whatever bytes change: weights or one line, and no other error."""
    path = tmp_path / "model.any"
    write(kind, {"a": torch.rand(3, 4), "b": torch.rand(5)}, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_weights(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"no checkpoint \(empty\)"),
        (b"<!DOCTYPE html><html>", "no checkpoint .*<!DOCTYPE"),
        (b"version https://git-lfs.github.com/spec/v1", "no checkpoint .*version https"),
        (pickle.dumps([1, 2]), "holds no weights but a list"),
        (pickle.dumps({"model": {}, "x": 1}), "holds no weights, but nothing"),
        (pickle.dumps({"iteration": 1}), "holds no weights, but 'iteration'"),
        (pickle.dumps({"weight": np.ones(3)}), "neither an MViT nor a detector.*weight"),
    ],
)
def test_wrong_files(content, words, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(path, words)


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.pth", "there is no checkpoint file")
    refused(tmp_path, "there is no checkpoint file")


def test_zip_files_that_are_none_of_torch(tmp_path, weights):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "x")
    refused(path, "without one data.pkl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    refused(path, "compressed entries")


def test_a_memo_beyond_the_end_of_a_legacy_file(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.rand(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    # Each of the first pickles that holds a dictionary memoises it first.
    assert b"\x80\x02}q\x00" in content
    path.write_bytes(content.replace(b"\x80\x02}q\x00", b"\x80\x02}r\xff\xff\xff\x7f"))
    refused(path, "memo 2147483647 in a pickle")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_storage_that_claims_more_than_there_is(is_zip, tmp_path):
    """Refused before anything of that size is allocated."""
    buffer = io.BytesIO()
    torch.save({"a": torch.rand(77)}, buffer, _use_new_zipfile_serialization=is_zip)
    content = buffer.getvalue()
    path = tmp_path / "model.pth"
    huge = b"\x8a\x06\0\0\0\0\0\x10"  # 2^44
    if is_zip:
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                new.writestr(entry, old.read(entry).replace(b"KM", huge, 1))
    else:
        assert b"KM" in content
        path.write_bytes(content.replace(b"KM", huge, 1))
    refused(path, "it is damaged: .* (claim|claims) 70368744177664 bytes")


def test_a_view_larger_than_its_file(tmp_path):
    """Strides of zero give any shape to a file of a few bytes."""
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    refused(path, r"tensor a of shape \(1000000, 1000000\) exceeds the file")


def test_classes_that_torch_refuses_are_named(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.rand(2)}, "args": MViT}, path)
    refused(path, r"it wants to run mvitv2_det\.backbone\.mvit\.MViT;")
