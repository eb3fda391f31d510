import collections
import os
import pickle
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf import InputError
from unicorn_hf.data.pickles import PickleVectors, read_pickle
from unicorn_hf.data.vectors import open_vectors


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(protocol, tmp_path):
    rng = np.random.default_rng(0)
    value = [
        {"id": "007", "caption": "ünïcode", "embed": rng.standard_normal(8).astype(np.float16)},
        {"id": 7, "nested": (1.5, None, True, [b"x"]), "embed": np.asfortranarray(rng.standard_normal((3, 4)))},
        {"id": np.int64(3), "score": np.float32(0.5), "embed": np.arange(4, dtype=">i4")},
    ]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    read = read_pickle(tmp_path / "x.pkl")
    for ours, theirs in zip(read, value, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_array_equal(ours["embed"], theirs["embed"])
        assert all(ours[key] == theirs[key] for key in ours if key != "embed")


class Runs:
    """Touches a file when it is unpickled by a reader that trusts it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_hostile_pickle_runs(protocol, tmp_path):
    trap = tmp_path / "ran"
    for value in (Runs(str(trap)), [{"id": "1", "embed": Runs(str(trap))}], np.array([Runs(str(trap))], dtype=object)):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(InputError, match="allowed"):
            read_pickle(tmp_path / "x.pkl")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Runs(str(trap))))
    assert trap.exists()  # the trap works


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(a=1),
        {1, 2},
        1 + 2j,
        np.array(["a"]),
        np.zeros(2, dtype=[("a", "f4")]),
        eval,
        np.ndarray,
        slice(1),
        bytearray(b"a"),
    ],
    ids=repr,
)
def test_anything_but_plain_data_is_refused(value, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1] * 1000)[:-100], b"\x80\x05R."])
def test_a_damaged_pickle_is_one_sentence(data, tmp_path):
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        read_pickle(tmp_path / "x.pkl")


def test_pickles_are_refused_unless_allowed(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([{"id": 1, "embed": np.ones(3)}]))
    with pytest.raises(InputError, match="--allow-pickle"):
        open_vectors(tmp_path / "x.pkl")


def test_reading_pickles_warns(tmp_path, caplog):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([{"id": 1, "embed": np.ones(3)}]))
    open_vectors(tmp_path / "x.pkl", allow_pickle=True)
    assert "reading pickles" in caplog.text


@pytest.mark.parametrize(
    "value",
    [{}, [], [1], [{"id": 1}], [{"embed": np.ones(3)}], [{"id": 1, "embed": np.ones(3)}, {"id": 2, "embed": 5}]],
)
def test_pickles_of_another_form_are_refused(value, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=r"expected a list|not of the form"):
        PickleVectors(tmp_path / "x.pkl", allow_pickle=True)


def test_chunks_are_read_in_the_order_of_their_numbers(tmp_path):
    for chunk in range(12):
        record = {"id": chunk, "embed": np.full(4, chunk, np.float16)}
        (tmp_path / f"chunk_{chunk}.pkl").write_bytes(pickle.dumps([record]))
    source = open_vectors(tmp_path, allow_pickle=True)
    assert np.concatenate(list(source.blocks()))[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize("depth", [60, 5000])
def test_lists_of_the_same_lists_are_read_in_the_time_of_their_length(depth, tmp_path):
    program = b"]q\x00" + b"".join(b"](h\x00h\x00eq\x00" for _ in range(depth)) + b"."
    (tmp_path / "x.pkl").write_bytes(program)
    if depth == 60:
        assert isinstance(read_pickle(tmp_path / "x.pkl"), list)
    else:
        with pytest.raises(InputError, match="is damaged"):
            read_pickle(tmp_path / "x.pkl")


def test_tuples_of_the_same_tuples_are_refused_before_they_are_built(tmp_path):
    nested = b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    wide = b"".join(b"(" + b"h\x00" * 1000 + b"tq\x00" for _ in range(4))
    for program in (nested, wide):
        (tmp_path / "x.pkl").write_bytes(b"}K\x01q\x00" + program + b"K\x01s.")
        with pytest.raises(InputError, match="tuples in tuples"):
            read_pickle(tmp_path / "x.pkl")


def test_a_program_of_too_many_instructions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("unicorn_hf.data.pickles._MAX_OPCODES", 1000)
    (tmp_path / "x.pkl").write_bytes(b"]" + b"N0" * 1000 + b".")
    with pytest.raises(InputError, match="over 1,000 instructions"):
        read_pickle(tmp_path / "x.pkl")


@settings(max_examples=300, deadline=timedelta(seconds=5))
@given(st.data())
def test_no_change_of_bytes_brings_more_than_a_sentence(tmp_path_factory, data):
    records = [{"id": str(row), "caption": "a", "embed": np.ones(3, np.float16)} for row in range(3)]
    program = bytearray(pickle.dumps(records, protocol=data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("pickle") / "x.pkl"
    file.write_bytes(program)
    try:
        list(open_vectors(file, allow_pickle=True).blocks())
    except InputError as error:
        assert "\n" not in str(error)
