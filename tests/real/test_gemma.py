"""The whole road with a real pretrained language model; how long it takes on two cores is in docs/training.md.

Gemma 3 270M is a base model, which follows no instruction: it is asked by examples (`prompts/`), one answer a request.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from datasets import Dataset

from unicorn_hf import ChatWriter, InputError, TransformersWriter, evaluate, write_captions, write_instructions

PROMPTS = Path(__file__).parent / "prompts"
SEEDS = ["brown dog, beach", "bowl of ramen, chopsticks", "old train, mountain bridge", "cat, window, rain"]
CAPTIONS = [
    "A brown dog runs along the beach behind a red ball.",
    "A bowl of ramen with two halves of an egg stands on a wooden table.",
    "An old black train crosses a stone bridge between two mountains.",
]
LIMITS = {"max_tokens": 96, "temperature": 0}  # an answer to these prompts has some sixty tokens


def test_text_alone_gives_the_language_models_own_logits_to_the_bit(gemma):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from unicorn_hf import UnicornForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(gemma)
    inputs = tokenizer("A brown dog runs along the beach at sunset.", return_tensors="pt")
    alone = AutoModelForCausalLM.from_pretrained(gemma).eval()
    ours = UnicornForConditionalGeneration.from_text_pretrained(gemma, embed_dim=64).eval()
    with torch.inference_mode():
        expected = alone(**inputs).logits
        assert torch.equal(ours(**inputs).logits[..., : expected.shape[-1]], expected)


def test_a_local_model_writes_captions_and_conversations(gemma, tmp_path, capsys):
    check_synthesis(TransformersWriter(gemma, **LIMITS), tmp_path, capsys)


def test_a_served_model_writes_captions_and_conversations(gemma, tmp_path, capsys):
    with served(gemma, tmp_path) as address:
        check_synthesis(ChatWriter(str(gemma), (address,), concurrency=2, **LIMITS), tmp_path, capsys)


def check_synthesis(writer, folder, capsys):
    """A caption at least, and every request accounted for; of conversations 270M parameters promise nothing."""
    options = {"writer": writer, "prompt_dir": PROMPTS}
    captions = [{"id": str(row), "caption": caption} for row, caption in enumerate(CAPTIONS)]
    start = time.monotonic()
    for step, count, write in (
        ("captions", len(SEEDS), lambda to: write_captions(SEEDS, to, captions_per_seed=1, **options)),
        (
            "conversations",
            len(CAPTIONS),
            lambda to: write_instructions(
                Dataset.from_list(captions), to, mix={"question_answering": 1.0}, verify=False, **options
            ),
        ),
    ):
        try:
            accepted, written = len(write(folder / step)), folder / step
        except InputError as error:
            assert f"none of {count} requests gave a row" in str(error)
            accepted, written = 0, folder / f"{step}.work" / "output"
        refused = [
            json.loads(line)["reason"]
            for name in ("rejected.jsonl", "dead_letters.jsonl")
            for line in (written / name).read_text(encoding="utf-8").splitlines()
        ]
        assert accepted + len(refused) == count
        assert accepted or step == "conversations"
        with capsys.disabled():
            print(f"\n{type(writer).__name__}: {accepted} of {count} {step} accepted, refused: {refused or 'none'}")
    with capsys.disabled():
        print(f"in {time.monotonic() - start:.0f} s")


class served:
    """`transformers serve` on a free port, ended by its own pid."""

    def __init__(self, model, folder):
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = ["serve", str(model), "--device", "cpu", "--dtype", "float32", "--port", str(self.port)]
        self.log = (folder / "serve.log").open("w")

    def __enter__(self):
        program = os.path.join(os.path.dirname(sys.executable), "transformers")
        self.process = subprocess.Popen([program, *self.command], stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {open(self.log.name).read()[-2000:]}")
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=5)
                return f"http://127.0.0.1:{self.port}/v1"
            except httpx.HTTPError:
                time.sleep(1)
        raise TimeoutError("the server did not start within three minutes")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


@pytest.fixture(scope="module")
def trained(gemma, demo_output, tmp_path_factory):
    """Both stages for 30 steps each on the demo's vectors."""
    folder = tmp_path_factory.mktemp("trained")
    common = ["--dataset", str(demo_output / "6-datasets" / "realign"), "--max_steps", "30", "--use_cpu", "true"]
    common += ["--per_device_train_batch_size", "4", "--report_to", "none", "--save_strategy", "no", "--bf16", "false"]
    start = time.monotonic()
    stage_1 = ["--dataset_config", "unicorn-1.2m", "--learning_rate", "2e-3"]
    run_recipe("pretrain", gemma, folder / "stage-1", *common, *stage_1)
    middle = time.monotonic()
    lora = ["--use_peft", "true", "--lora_r", "16", "--lora_target_modules", "q_proj", "v_proj"]
    stage_2 = ["--dataset_config", "unicorn-471k-instruction", "--learning_rate", "1e-3"]
    run_recipe("finetune", folder / "stage-1", folder / "stage-2", *common, *lora, *stage_2)
    print(f"\n30 steps: stage 1 {middle - start:.0f} s, stage 2 (LoRA) {time.monotonic() - middle:.0f} s")
    return folder / "stage-2"


def run_recipe(stage, model, output, *arguments):
    command = [sys.executable, "-m", f"unicorn_hf.recipes.{stage}", "--model_name_or_path", str(model)]
    result = subprocess.run([*command, "--output_dir", str(output), *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-3000:])


@pytest.mark.xfail(raises=AssertionError, reason="seen: 0.267 against 0.275; 30 steps of 4 samples are too few")
def test_thirty_steps_of_both_stages_answer_better_than_blind(trained, demo_output, tmp_path, capsys):
    from test_readme import write_questions

    write_questions(demo_output, tmp_path / "questions")
    start = time.monotonic()
    answers = evaluate(str(trained), tmp_path / "questions", split="train[:120]", batch_size=20, max_new_tokens=8)
    with capsys.disabled():
        print(f"\nGemma 3 270M in {time.monotonic() - start:.0f} s: {answers}")
    assert answers.overall.value > answers.overall.blind
