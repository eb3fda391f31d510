"""Ranks under Slurm (a stand-in that runs its jobs at once) and on Ray."""

import os
import stat

import pytest

from unicorn_hf.data.sources import read_dataset
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import write_captions

SEEDS = [f"{thing} number {index}" for index in range(10) for thing in ("dog", "boat", "lamp")]

SBATCH = """#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for rank in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$rank SLURM_NODELIST=localhost bash "$script" >> "$0.log" 2>&1
done
echo "Submitted batch job 1"
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin" / "sbatch.log"


def test_slurm_jobs_write_what_one_process_writes(llm_server, chat_writer, tmp_path, slurm):
    writer = chat_writer(llm_server(), timeout=30, deadline=60)
    one = write_captions(SEEDS, tmp_path / "one", writer=writer)
    options = {"partition": "cpu", "time": "01:00:00"}
    submitted = write_captions(
        SEEDS, tmp_path / "many", writer=writer, executor="slurm", tasks=2, executor_options=options
    )
    assert submitted is None
    assert read_dataset(tmp_path / "many").to_list() == one.to_list(), slurm.read_text()


def test_slurm_needs_its_partition(llm_server, chat_writer, tmp_path):
    with pytest.raises(InputError, match="partition"):
        write_captions(SEEDS, tmp_path / "many", writer=chat_writer(llm_server()), executor="slurm", tasks=2)


def test_an_unknown_executor_is_named_before_anything_is_written(llm_server, chat_writer, tmp_path):
    with pytest.raises(InputError, match="--executor is 'cloud'; expected one of"):
        write_captions(SEEDS, tmp_path / "many", writer=chat_writer(llm_server()), executor="cloud")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ray_writes_what_one_process_writes(llm_server, chat_writer, tmp_path):
    ray = pytest.importorskip("ray")
    writer = chat_writer(llm_server(), timeout=30, deadline=60)
    one = write_captions(SEEDS, tmp_path / "one", writer=writer)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        many = write_captions(SEEDS, tmp_path / "many", writer=writer, executor="ray", tasks=2)
    finally:
        ray.shutdown()
    assert many.to_list() == one.to_list()
