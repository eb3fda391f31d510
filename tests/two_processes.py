"""A script run by two gloo processes of torchrun."""

import os
import subprocess
import sys
from pathlib import Path


def run_in_two_processes(code: str, folder: Path) -> list[str]:
    """Run `code`, whose `sys.argv[1]` is `folder`, in both; the lines that they print."""
    script = folder / "two_processes.py"
    script.write_text(code)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()
