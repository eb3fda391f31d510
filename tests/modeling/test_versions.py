"""A model that one version of transformers has saved is the same model under every other.

The other versions are those of the environments beside this one (`make test-oldest` and `make test-newest` build them).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from other_versions import OTHERS

# The two programs, as they run under each version.
SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from tiny_models import EMBED_DIM, new_model, new_tokenizer
from test_vision_tower import TOWERS, new_tower
from unicorn_hf.modeling import UnicornProcessor
models = {
    "llama": {},
    "llama tied": {"sizes": {"tie_word_embeddings": True}},
    "llama copies": {"num_image_tokens": 4, "projector_expand": "copy"},
    **{name: {} for name in ("cohere", "gemma2", "gemma3", "gpt2", "granite", "opt", "phi", "phi3", "qwen3")},
    **{name: {} for name in ("qwen3_moe", "llama clip", "qwen3 siglip")},
}
for name, options in models.items():
    torch.manual_seed(0)
    family, *rest = name.split()
    tower = rest[0] if rest and rest[0] in TOWERS else None
    options = {"num_image_tokens": 2} | options
    processor = UnicornProcessor(
        new_tokenizer(), TOWERS[tower][1]() if tower else None, options["num_image_tokens"], EMBED_DIM, "tiny-clip"
    )
    model = new_model(family, image_token_id=processor.image_token_id, **options)
    if tower:
        model.set_vision_tower(new_tower(tower))
    model.set_image_embeds_statistics(mean=torch.randn(EMBED_DIM) / 4)
    model.save_pretrained(Path(sys.argv[1]) / name)
    processor.save_pretrained(Path(sys.argv[1]) / name)
"""
READ = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
def answer(model, processor):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    messages = [messages, [{"role": "user", "content": "No image here."}]]
    inputs = processor.apply_chat_template(
        messages,
        image_embeds=torch.linspace(-1, 1, 12)[None],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    if model.model.vision_tower is not None:
        del inputs["image_embeds"]
        picture = Image.linear_gradient("L").convert("RGB")
        inputs |= processor(images=picture, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    return {
        "inputs": inputs["input_ids"].tolist(),
        "tokens": model.generate(**inputs, **options).tolist(),
        "beams": model.generate(**inputs, **options, num_beams=2).tolist(),
        "logits": logits.tolist(),
    }

answers = {}
folders = sorted(Path(sys.argv[1]).iterdir())
for trust_remote_code in (True, False):
    if not trust_remote_code:
        import unicorn_hf.modeling
    for folder in folders:
        # SDPA cannot cap Gemma 2's attention: 5.10 takes it all the same by default, 5.24 does not.
        options = {"attn_implementation": "eager"} if folder.name == "gemma2" else {}
        options["trust_remote_code"] = trust_remote_code
        model = AutoModelForImageTextToText.from_pretrained(folder, **options)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        assert type(model).__module__.startswith("transformers_modules" if trust_remote_code else "unicorn_hf.modeling")
        answers[f"{folder.name}, {trust_remote_code = }"] = answer(model, processor)
print(json.dumps(answers))
"""


def run(python: Path | str, code: str, *arguments, tmp_path: Path) -> str:
    result = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.skipif(not OTHERS, reason="no other environment beside this one (.venv, .venv-oldest, .venv-newest)")
@pytest.mark.parametrize("direction", ["saved here", "saved there"])
@pytest.mark.parametrize("other", OTHERS, ids=lambda python: python.parents[1].name)
def test_saved_model_gives_the_same_answers_under_another_version(other, direction, tmp_path):
    here, there = (sys.executable, other) if direction == "saved here" else (other, sys.executable)
    arguments = tmp_path / "models", Path(__file__).parent
    run(here, SAVE, *arguments, tmp_path=tmp_path / "here")
    expected = json.loads(run(here, READ, *arguments, tmp_path=tmp_path / "here").splitlines()[-1])
    answers = json.loads(run(there, READ, *arguments, tmp_path=tmp_path / "there").splitlines()[-1])
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        for kind in ("inputs", "tokens", "beams"):
            assert answer[kind] == expected[name][kind], (name, kind)
        for row, expected_row in zip(answer["logits"], expected[name]["logits"], strict=True):
            assert row == pytest.approx(expected_row, rel=1e-4, abs=1e-4), name
