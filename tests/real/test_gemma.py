"""The whole road with a real pretrained language model; how long it takes on two cores is in docs/training.md.

Gemma 3 270M is a base model, which follows no instruction: it is asked by examples (`prompts/`), one answer a request.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from datasets import Dataset, Image

from unicorn_hf import ChatWriter, InputError, TransformersWriter, evaluate, write_captions, write_instructions
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.sandbox.world import draw_all, split_scenes
from unicorn_hf.synthesis.grammar import scene_questions

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


# Thirty steps teach little, so none is wasted: short questions, rates at which 270M parameters and a projector
# learn fast. The frozen weights are in bfloat16, which is three times as fast on a processor that has it.
SHARED = ["--max_steps", "30", "--lr_scheduler_type", "cosine", "--warmup_steps", "3", "--dtype", "bfloat16"]
SHARED += ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--logging_steps", "10"]
SHARED += ["--report_to", "none", "--save_strategy", "no"]
STAGE_1 = ["--num_image_tokens", "4", "--projector_type", "linear", "--standardize_image_embeds", "true"]
STAGE_1 += ["--learning_rate", "1e-2", "--per_device_train_batch_size", "16", "--dataset_config", "unicorn-1.2m"]
STAGE_2 = ["--learning_rate", "1e-3", "--projector_learning_rate", "5e-3", "--per_device_train_batch_size", "8"]
STAGE_2 += ["--use_peft", "true", "--lora_r", "16", "--lora_alpha", "32", "--lora_target_modules"]
STAGE_2 += ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def trained(gemma, demo_output, tmp_path_factory):
    """Both stages for 30 steps each on the demo's vectors of text; of the conversations, those of plain questions."""
    folder, data = tmp_path_factory.mktemp("trained"), demo_output / "6-datasets" / "realign"
    conversations = read_dataset(data, "unicorn-471k-instruction")
    questions = conversations.filter(lambda task: task == "question_answering", input_columns="task")
    provenance = read_provenance(data)
    write_dataset(questions, folder / "questions", title="Questions", provenance=provenance)
    start = time.monotonic()
    run_recipe("pretrain", gemma, data, folder / "stage-1", *SHARED, *STAGE_1)
    middle = time.monotonic()
    run_recipe("finetune", folder / "stage-1", folder / "questions", folder / "stage-2", *SHARED, *STAGE_2)
    print(f"\n30 steps: stage 1 {middle - start:.0f} s, stage 2 (LoRA) {time.monotonic() - middle:.0f} s")
    return folder / "stage-2"


def run_recipe(stage, model, data, output, *arguments):
    command = [sys.executable, "-m", f"unicorn_hf.recipes.{stage}", "--model_name_or_path", str(model)]
    command += ["--dataset", str(data), "--output_dir", str(output), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-3000:])


def test_thirty_steps_of_both_stages_answer_better_than_blind(trained, capsys):
    """By more than the error of the measurement, over images of scenes that no text described."""
    start = time.monotonic()
    answers = evaluate(str(trained), questions_about_images(300), batch_size=25, max_new_tokens=6)
    with capsys.disabled():
        print(f"\nGemma 3 270M in {time.monotonic() - start:.0f} s:\n{answers}")
    low, _ = answers.overall.gain_interval
    assert low > 0


def questions_about_images(num_images):
    """Every plain question that the scenes of some new images answer."""
    rng = random.Random(0)
    scenes = split_scenes(7, 10, 10, num_images).test
    rows = [
        {"image_id": str(number), "image": image, "kind": kind, "question": question, "answer": answer}
        for number, (scene, image) in enumerate(zip(scenes, draw_all(scenes, seed=5), strict=True))
        for kind, question, answer in scene_questions(scene, "question_answering", rng)
    ]
    return Dataset.from_list(rows).cast_column("image", Image())
