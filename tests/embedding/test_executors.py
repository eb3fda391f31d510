import os
import pickle
import sys
from pathlib import Path

import datasets
import pytest

from unicorn_hf import embed
from unicorn_hf.embedding import EmbeddingJob
from unicorn_hf.errors import InputError

from .conftest import check_same
from .test_embed import captions

pytest.importorskip("datatrove")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "captions.parquet"
    texts = captions(90)
    texts[50] = None
    datasets.Dataset.from_dict({"caption": texts}).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("expected") / "out"
    embed(source, folder, encoder="sandbox", shard_rows=20)
    return folder


@pytest.mark.parametrize("tasks", [2, 4])
def test_local_tasks_give_the_folder_that_one_gives(tasks, source, expected, tmp_path, capfd):
    embed(source, tmp_path / "out", encoder="sandbox", shard_rows=20, tasks=tasks)
    check_same(tmp_path / "out", expected)
    assert "datatrove" not in "".join(capfd.readouterr())  # no log beside the progress bars
    assert not list(tmp_path.glob(".out*"))


def test_another_number_of_tasks_goes_on_where_a_run_stopped(source, expected, tmp_path):
    job = EmbeddingJob(data=source, output=tmp_path / "out", encoder="sandbox", shard_rows=20, tasks=4)
    job.open_source()
    job.start()
    job.run_rank(1, 4)  # what four tasks leave when only the second came to its end
    assert job.done_shards() == {1}
    embed(source, tmp_path / "out", encoder="sandbox", shard_rows=20)
    check_same(tmp_path / "out", expected)


def test_a_rank_refuses_a_source_that_has_changed_since_the_run_began(tmp_path):
    source = tmp_path / "captions.parquet"
    datasets.Dataset.from_dict({"caption": captions(30)}).to_parquet(source)
    job = EmbeddingJob(data=source, output=tmp_path / "out", encoder="sandbox", shard_rows=20, tasks=2)
    job.open_source()
    job.start()
    datasets.Dataset.from_dict({"caption": captions(31)}).to_parquet(source)
    with pytest.raises(InputError, match="the source has changed"):
        pickle.loads(pickle.dumps(job)).run_rank(0, 2)


def test_ray_gives_the_folder_that_one_task_gives(source, expected, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        embed(
            source,
            tmp_path / "out",
            encoder="sandbox",
            shard_rows=20,
            executor="ray",
            tasks=2,
            executor_options={"mem_per_cpu_gb": 0.1},
        )
    finally:
        ray.shutdown()
    check_same(tmp_path / "out", expected)


FAKE_SBATCH = """#!{python}
# Keeps what was submitted and runs the array's tasks one after another, as a queue of one slot would.
import os, pathlib, re, subprocess, sys
log = pathlib.Path({log!r})
number = len(list(log.iterdir()))
script = pathlib.Path(sys.argv[-1]).read_text()
(log / f"{{number}}.sh").write_text(script)
(log / f"{{number}}.args").write_text(" ".join(sys.argv[1:-1]))
if "launch_pickled_pipeline" in script:
    last = int(re.search(r"--array=0-(\\d+)", script)[1])
    for task in range(last + 1):
        env = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here"}}
        subprocess.run(["bash", log / f"{{number}}.sh"], env=env, stdout=sys.stderr, check=False)
print("Submitted batch job", number)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """The commands of Slurm that datatrove calls, on the PATH; returns the folder with what was submitted."""
    commands, log = tmp_path / "bin", tmp_path / "submitted"
    commands.mkdir()
    log.mkdir()
    scripts = {
        "sbatch": FAKE_SBATCH.format(python=sys.executable, log=str(log)),
        "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
    }
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = f"{commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    return log


def test_slurm_jobs_are_submitted_and_give_the_folder_that_one_task_gives(slurm, source, expected, tmp_path):
    options = {"partition": "gpu", "time": "01:00:00", "gpus_per_task": 1, "sbatch.account": "lab"}
    out = tmp_path / "out"
    assert (
        embed(source, out, encoder="sandbox", shard_rows=20, executor="slurm", tasks=2, executor_options=options)
        is None
    )
    embedding, last = [path.read_text() for path in sorted(slurm.glob("*.sh")) if "launch_pickled" in path.read_text()]
    for directive in ("partition=gpu", "time=01:00:00", "gpus=1", "account=lab", "array=0-1", "job-name=embed"):
        assert f"#SBATCH --{directive}\n" in embedding
    assert "#SBATCH --array=0-0\n" in last
    # The step that makes the folder whole waits for the others.
    assert any("--dependency=after" in path.read_text() for path in slurm.glob("*.args"))
    check_same(out, expected)


def test_slurm_without_a_partition_is_one_sentence(slurm, source, tmp_path):
    with pytest.raises(InputError, match="partition"):
        embed(source, tmp_path / "out", encoder="sandbox", executor="slurm", tasks=2)
