"""Every task from a dataset to a report, with a model of random weights."""

import json
import re
import sys

import datasets
import numpy as np
import pytest

from unicorn_hf import InputError, evaluate, load_encoder
from unicorn_hf.cli import main
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.evaluation.reader import Reader

QUESTIONS = ["what color is the image ?", "is the image red ?"] * 4
COLUMNS = {
    "vqa": {"question": QUESTIONS, "answer": ["red", "yes", "green", "no", "blue", "no", "white", "no"]},
    "yes-no": {"question": QUESTIONS, "answer": ["yes", "no"] * 4},
    "multiple-choice": {"question": QUESTIONS, "options": [["red", "blue", "green"]] * 8, "answer": ["A", "B"] * 4},
    "caption": {"captions": [["a red image", "the image is red"]] * 8},
}
MAIN = {"vqa": "accuracy", "yes-no": "accuracy", "multiple-choice": "letter", "caption": "cider"}


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unicorn-hf", "evaluate", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("task", COLUMNS)
def test_a_task_runs_from_images_to_a_report(task, model_folder, with_images, tmp_path, run):
    write_dataset(with_images(category=["a", "b"] * 4, **COLUMNS[task]), tmp_path / "data", title="data")
    output = tmp_path / "out"
    status, printed, _ = run(model_folder, tmp_path / "data", "--task", task, "-o", output, "--max-new-tokens", 4)
    assert status == 0
    saved = json.loads((output / "evaluation.json").read_text())
    assert (saved["task"], saved["questions"], saved["images"]) == (task, 8, 4)
    assert next(iter(saved["scores"])) == MAIN[task]
    for scores in (saved["scores"], *saved["kinds"].values()):
        for score in scores.values():
            low, high = score["interval"]
            assert 0 <= low <= score["value"] <= high
            assert score["gain"] == pytest.approx(score["value"] - score["blind"])
    assert {kind: scores[MAIN[task]]["total"] for kind, scores in saved["kinds"].items()} == {"a": 4, "b": 4}
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert [answer["row"] for answer in answers] == list(range(8))
    page = (output / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    headings = re.findall(r"<h2>All (\d) (?:right|better|wrong|worse) (?:answers|captions)</h2>", page)
    assert sum(map(int, headings)) == 8
    assert page.count(' <span class="interval">[') and "[In square brackets]: the 95 % interval" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)  # nothing from elsewhere
    assert str(output / "report.html") in printed and MAIN[task] in printed


def test_images_and_their_vectors_give_the_same_answers(model_folder, with_images, images):
    columns = COLUMNS["vqa"]
    vectors = load_encoder("sandbox").encode_images(images).repeat(2, axis=0)
    stored = datasets.Dataset.from_dict({**columns, "image_embeds": list(vectors)})
    assert evaluate(model_folder, with_images(**columns)).answers == evaluate(model_folder, stored).answers


def test_a_model_with_an_image_tower_reads_images_through_it(model_and_processor, with_images):
    import copy

    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
    from unicorn_hf.modeling import UnicornProcessor

    model, processor = copy.deepcopy(model_and_processor[0]), model_and_processor[1]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=128))
    model.set_vision_tower(tower)
    model.config.image_encoder = None  # nobody else could encode the images
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    processor = UnicornProcessor(processor.tokenizer, images, num_image_tokens=2, embed_dim=128)
    assert len(evaluate(model, with_images(**COLUMNS["vqa"]), processor=processor).answers) == 8


def test_the_scores_are_those_of_the_answers_beside_the_blind_ones(model_folder, with_vectors, monkeypatch):
    right = COLUMNS["vqa"]["answer"]

    def answer(reader, questions, rows):
        seeing = len(reader.vectors) == 4
        return [right[row] if seeing and row < 6 else "no" for row in rows]

    monkeypatch.setattr(Reader, "answer", answer)
    result = evaluate(model_folder, with_vectors(**COLUMNS["vqa"], kind=["color", "yes or no"] * 4))
    assert (result.overall.value, result.overall.blind) == (7 / 8, 3 / 8)
    assert {kind: (score.value, score.blind) for kind, score in result.by_kind().items()} == {
        "color": (3 / 4, 0),
        "yes or no": (1, 3 / 4),
    }
    assert result.correct == [1, 1, 1, 1, 1, 1, 0, 1]
    assert result.blind_answers == ["no"] * 8


def test_the_blind_baseline_is_the_mean_of_the_vectors_of_all_images(model_folder, with_vectors, monkeypatch):
    seen = []
    monkeypatch.setattr(Reader, "answer", lambda reader, questions, rows: seen.append(reader) or [""] * len(rows))
    data = with_vectors(**COLUMNS["vqa"])
    evaluate(model_folder, data)
    seeing, blind = seen
    rows = np.array(data["image_embeds"], np.float32)
    np.testing.assert_array_equal(seeing.vectors[seeing.image_of], rows)
    assert len(seeing.vectors) == 4
    np.testing.assert_allclose(blind.vectors[blind.image_of], np.tile(rows.mean(axis=0), (8, 1)), atol=1e-6)


def test_blind_needs_no_images_and_has_no_baseline(model_folder):
    data = datasets.Dataset.from_dict(COLUMNS["vqa"])
    result = evaluate(model_folder, data, blind=True)
    assert len(result.answers) == 8 and result.blind_answers is None and result.overall.blind is None


def test_the_transfer_conditions_the_vectors(model_folder, with_vectors, tmp_path, monkeypatch):
    from unicorn_hf import MeanShift

    rng = np.random.default_rng(1)
    text, image = rng.normal(size=(50, 128)), rng.normal(size=(50, 128)) + 1
    saved = MeanShift.fit(text, image, centred=True, encoder="sandbox").save_pretrained(tmp_path / "transfer")
    seen = []
    monkeypatch.setattr(Reader, "answer", lambda reader, questions, rows: seen.append(reader) or [""] * len(rows))
    data = with_vectors(**COLUMNS["vqa"])
    evaluate(model_folder, data, transfer=saved, baseline=False)
    unit = np.array(data["image_embeds"], np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mean = (image / np.linalg.norm(image, axis=1, keepdims=True)).mean(axis=0)
    moved = (unit - mean) / np.linalg.norm(unit - mean, axis=1, keepdims=True)
    np.testing.assert_allclose(seen[0].vectors[seen[0].image_of], moved, atol=1e-5)


def test_a_model_of_another_transfer_refuses_it(model_and_processor, with_vectors):
    import copy

    from unicorn_hf import ModalityTransfer

    model, processor = copy.deepcopy(model_and_processor[0]), model_and_processor[1]
    rows = np.random.default_rng(0).normal(size=(50, 128))
    transfer = ModalityTransfer.fit(rows, rows + 1, method="realign", encoder="sandbox")
    model.config.transfer = "mean_shift"
    data = with_vectors(**COLUMNS["vqa"])
    with pytest.raises(InputError, match="the transfer is 'realign', but the model was trained"):
        evaluate(model, data, processor=processor, transfer=transfer)
    with pytest.warns(UserWarning, match="centred space"):
        evaluate(model, data, processor=processor, baseline=False)


def break_vectors(rows):
    rows[3, 5] = np.nan
    return rows


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("poetry", {"question": ["?"]}, "--task is 'poetry'; expected one of vqa, multiple-choice, yes-no, caption"),
        ("vqa", {"question": ["?"]}, "has no column 'answer'"),
        ("vqa", {"answer": ["?"]}, "has no column 'question'"),
        ("vqa", {"question": ["?", None], "answer": ["a", "b"]}, "row 1: the question is None"),
        ("vqa", {"question": ["?"], "answer": [["a", "b"]]}, "row 0: the answer is"),
        ("multiple-choice", {"question": ["?"], "answer": ["A"]}, "has no column 'options'"),
        ("multiple-choice", {"question": ["?"], "options": [["a", "b"]], "answer": ["C"]}, "none of the options"),
        ("yes-no", {"question": ["?"], "answer": ["maybe"]}, "expected yes or no"),
        ("caption", {"question": ["?"]}, "has no column 'caption'"),
        ("vqa", {"question": ["?"], "answer": ["a"]}, "has no images and no vectors of images"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image": ["nowhere.png"]}, "row 0: .*nowhere.png"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image": [None]}, "row 0 has no image"),
        (
            "vqa",
            {"question": ["?"], "answer": ["a"], "image_embeds": [[1.0] * 64]},
            "of 64 dimensions; .* 128 .*'sandb",
        ),
        ("vqa", {"question": ["?"] * 2, "answer": ["a"] * 2, "image_embeds": [[1.0] * 128, [1.0]]}, "row 1 has 1 dim"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [[float("nan")] * 128]}, "row 0: .*NaN"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [None]}, "'image_embeds'"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [[0.0] * 128]}, "row 0: .*only zeros"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [[1e300] * 128]}, "row 0: .*up to 1e.300, which"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [["1.0"] * 128]}, "holds list<.*string"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [[True] * 128]}, "holds list<.*bool"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": ["1.0"]}, "holds string"),
        ("vqa", {"question": ["?"], "answer": ["a"], "image_embeds": [{"x": 1.0}]}, "holds struct"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(task, data, message, model_folder, run, tmp_path):
    source = tmp_path / "data.parquet"
    datasets.Dataset.from_dict(data).to_parquet(source)
    status, _, printed = run(model_folder, source, "--task", task, "-o", tmp_path / "out")
    assert status == 2
    (sentence,) = (line for line in printed.splitlines() if line.startswith("unicorn-hf: "))
    assert re.search(message, sentence)
    assert not (tmp_path / "out").exists()


def test_vectors_of_another_encoder_are_refused(model_folder, with_vectors, tmp_path):
    provenance = {"image_embeds": {"encoder": "open_clip/ViT-B-32/openai", "embed_dim": 128}}
    write_dataset(with_vectors(**COLUMNS["vqa"]), tmp_path / "data", title="data", provenance=provenance)
    with pytest.raises(InputError, match="of the encoder 'open_clip/ViT-B-32/openai', but the model"):
        evaluate(model_folder, tmp_path / "data")


def test_a_missing_model_is_one_sentence(tmp_path, with_vectors):
    with pytest.raises(InputError, match="cannot be loaded as a model"):
        evaluate(tmp_path / "nothing", with_vectors(**COLUMNS["vqa"]))


def test_a_model_that_cannot_chat_is_one_sentence(model_and_processor, with_vectors):
    import copy

    model, processor = model_and_processor[0], copy.deepcopy(model_and_processor[1])
    processor.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        evaluate(model, with_vectors(**COLUMNS["vqa"]), processor=processor)


def test_an_output_that_holds_something_is_left_alone(model_folder, with_vectors, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        evaluate(model_folder, with_vectors(**COLUMNS["vqa"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
