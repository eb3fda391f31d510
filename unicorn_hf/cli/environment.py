"""`unicorn-hf env`: the versions and the machine, for a bug report."""

import os
import platform

from unicorn_hf.cli import app

# The packages that the steps depend on.
PACKAGES = (
    "unicorn-hf",
    "torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "trl",
    "peft",
    "accelerate",
    "open_clip_torch",
    "sentence-transformers",
    "datatrove",
    "openai",
    "pyarrow",
    "numpy",
    "safetensors",
    "typer",
    "gradio",
)


@app.command("env", epilog="Examples:\n\nunicorn-hf env\n\nunicorn-hf env > environment.txt")
def environment():
    """Print the versions and the machine, for a bug report."""
    from importlib import metadata

    print(f"{'python':24} {platform.python_version()}")
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{package:24} {version}")
    print(f"{'platform':24} {platform.platform()}, {os.cpu_count()} CPUs")
    print(f"{'GPUs':24} {_gpus()}")


def _gpus() -> str:
    try:
        import torch
    except ImportError:
        return "unknown without torch"
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"
