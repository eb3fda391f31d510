import io
import json
import time
from codecs import BOM_UTF8

import ijson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicorn_hf.data.json_nesting import MOST_LEVELS, ShallowFile
from unicorn_hf.errors import InputError

TEXT = st.text(alphabet='[]{}"\\ab é', max_size=12)
VALUES = st.recursive(
    TEXT | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, size=st.integers(1, 9), ascii=st.booleans())
def test_what_is_shallow_is_read_as_it_is(value, size, ascii):
    content = json.dumps([value] * 3, ensure_ascii=ascii).encode()
    file = ShallowFile(io.BytesIO(content), "data.json")
    assert list(ijson.items(file, "item", buf_size=size)) == [value] * 3
    assert file._levels == 0


def test_brackets_in_strings_are_text():
    sad = ":[ " * 50_000 + '{"'
    assert list(ijson.items(ShallowFile(io.BytesIO(json.dumps([sad]).encode()), "data.json"), "item")) == [sad]


@pytest.mark.parametrize("deep", ["[", '{"a":', '{"[":[', '["\\\\",', '["\\"",'])
@pytest.mark.parametrize("before", ["[", '["}", ', '["]]]]]]]]]]", '])
def test_nesting_is_bounded(deep, before):
    content = (before + deep * 100_000).encode()
    for size in (1, 7, 1 << 16):
        file = ShallowFile(io.BytesIO(content), "data.json")
        with pytest.raises(InputError, match=r"^data.json: is nested more than 100 levels deep"):
            while file.read(size):
                pass
        assert file._levels <= MOST_LEVELS


def test_a_long_text_of_quotes_is_read_in_linear_time():
    content = json.dumps(['"' * 500_000]).encode()
    file, started = ShallowFile(io.BytesIO(content), "data.json"), time.process_time()
    while file.read(1 << 16):
        pass
    assert file._levels == 0
    assert time.process_time() - started < 1  # a search from each quote on takes minutes


def test_a_byte_order_mark_is_left_out():
    content = BOM_UTF8 + json.dumps([{"caption": "\ufeff a cat"}]).encode()
    assert list(ijson.items(ShallowFile(io.BytesIO(content), "data.json"), "item")) == [{"caption": "\ufeff a cat"}]
