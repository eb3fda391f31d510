import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from unicorn_hf.data.shards import write_shards
from unicorn_hf.data.tables import open_tables


def test_many_small_shards_are_read_by_many_threads_at_once(tmp_path):
    tables = [pa.table({"id": [str(row)]}) for row in range(60)]
    rows = open_tables(write_shards(tables, tmp_path, tables[0].schema, shard_size=1).files, "the shards")
    rows = pickle.loads(pickle.dumps(rows))  # as a worker process gets it
    pieces = rows.pieces * 20
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(lambda piece: next(rows.read(piece)).to_pylist(), pieces))
    assert read == [[{"id": str(row)}] for row in range(60)] * 20
