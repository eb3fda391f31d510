# One GPU: docker build -t unicorn-hf . && docker run --gpus all -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache" unicorn-hf demo
FROM python:3.12-slim

# Triton and torch.compile build small kernels with a C compiler; CUDA itself comes with PyTorch's wheels.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9

WORKDIR /src
COPY . .
RUN uv pip install --system --no-cache --constraint requirements/lock.txt '.[train,synthesis,clip,app,gap]' \
    bitsandbytes kernels

ENV HF_HOME=/cache PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["unicorn-hf"]
