"""Files of one array whose headers lie: each is a sentence, and nothing is read beyond the file."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn_hf.dataset_scripts.embedding_lookup import EmbeddingLookup

from unicorn_hf import InputError
from unicorn_hf.data.vectors import open_vectors

many = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
numbers = st.integers(-3, 40) | st.integers(-(2**63), 2**70) | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(["F16", "F32", "BF16", "I64", "F4"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
tensor = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "F32", "BF16"]) | json_values,
        "shape": st.lists(st.integers(0, 6), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-8, 64), max_size=3) | json_values,
        "more": json_values,
    },
)
headers = (
    st.dictionaries(st.sampled_from(["text_embeds", "a", "b", "__metadata__"]), tensor | json_values) | json_values
)


def read(file):
    """Every row, by every reader; a sentence where there is none."""
    for reader in (lambda: list(open_vectors(file, "text_embeds").blocks()), lambda: EmbeddingLookup.open(file)):
        try:
            reader()
        except InputError as error:
            assert "\n" not in str(error) and str(file) in str(error)


@many
@given(headers, st.binary(max_size=64), st.integers(-9, 9))
def test_a_safetensors_header_that_lies_is_a_sentence(tmp_path_factory, header, data, more):
    text = json.dumps(header).encode()
    file = tmp_path_factory.mktemp("header") / "x.safetensors"
    file.write_bytes(max(0, len(text) + more).to_bytes(8, "little") + text + data)
    (file.parent / "x.ids.txt").write_text("a\nb\n")
    read(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 7 + b"\x7f{}",
        (10**15).to_bytes(8, "little") + b"{}",
        (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995,
        (20_008).to_bytes(8, "little") + b'{"a":' * 4_001 + b"{}" + b"}" * 1,
    ],
    ids=["empty", "all ones", "a huge length", "a length beyond the file", "lists nested deep", "objects nested deep"],
)
def test_a_safetensors_file_without_a_header_is_a_sentence(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"is not a \.safetensors file") as error:
        open_vectors(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


NPY_TYPES = ["<f2", ">f4", "|O", "<U3", "|b1", "<c8", "<i4", "<f16", "|V2", [("a", "<f4")]]
npy_headers = st.fixed_dictionaries(
    {},
    optional={
        "descr": st.sampled_from(["<f2", ">f4", "|O", "<U3", "|b1", "<c8", "<i4", "<f16", "|V2", [("a", "<f4")]])
        | json_values,
        "fortran_order": st.booleans() | json_values,
        "shape": st.tuples(st.integers(-2, 9), st.integers(-2, 9)) | st.tuples(st.integers()) | json_values,
        "more": json_values,
    },
)


@many
@given(npy_headers | json_values, st.binary(max_size=200), st.sampled_from([1, 2, 3, 9]))
def test_an_npy_header_that_lies_is_a_sentence(tmp_path_factory, header, data, version):
    text = repr(header).encode("utf-8", "replace") + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    file = tmp_path_factory.mktemp("header") / "x.npy"
    file.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + data)
    (file.parent / "x.ids.txt").write_text("a\nb\n")
    read(file)


@pytest.mark.parametrize("text", ["(" * 300 + ")" * 300, "[" * 9_000, "9" * 9_000, "{'a':" * 1_500])
def test_an_npy_header_that_is_nested_deep_is_a_sentence(text, tmp_path):
    header = text.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"is not a \.npy file"):
        open_vectors(tmp_path / "x.npy")


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[pickle, 1]], dtype=object)[:, 1:], allow_pickle=True)
    with pytest.raises(InputError, match="holds object; expected numbers"):
        open_vectors(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", ["(-2, 3)", "(2, -3)", "(0, 3)", "(3,)", "(2, 3, 1)"])
def test_an_npy_header_of_another_shape_than_a_matrix_is_a_sentence(shape, tmp_path):
    header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 99)
    with pytest.raises(InputError, match=r"expected \[rows, dimensions\]"):
        open_vectors(tmp_path / "x.npy")
