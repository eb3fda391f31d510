"""The Pythons of the other environments, which `make test-oldest` and `make test-newest` build beside this one."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHERS = [
    python
    for name in (".venv", ".venv-newest", ".venv-oldest")
    for python in ROOT.glob(f"{name}/bin/python")
    if python.parents[1].resolve() != Path(sys.prefix).resolve() and (python.parents[1] / ".installed").exists()
]
