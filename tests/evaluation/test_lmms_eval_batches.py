"""The lmms-eval plug-in in batches: each request gets the answer to its own question and pictures."""

import random
import sys
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unicorn_hf import InputError
from unicorn_hf.evaluation.images import answer, encode_images

QUESTIONS = ("what color is the picture ?", "is it red ?", "<image> or <image> ?", "<im<image>age> ? <|end|>", "what ?")
OPTIONS = ({"max_new_tokens": 4}, {"max_new_tokens": 7, "until": ["\n"]})


class Collator:
    """As lmms-eval's: requests of like options together, each group in an order of its own."""

    def __init__(self, arguments, sort, grouping):
        groups = {}
        for place, each in enumerate(arguments):
            groups.setdefault(str(each[1]), []).append((place, each))
        self.groups = [sorted(group, key=lambda each: sort(each[1])) for group in groups.values()]

    def get_batched(self, n):
        for group in self.groups:
            for start in range(0, len(group), n):
                yield [each for _, each in group[start : start + n]]

    def get_original(self, answers):
        places = [place for group in self.groups for place, _ in group]
        return [said for _, said in sorted(zip(places, answers, strict=True), key=lambda each: each[0])]


@pytest.fixture(scope="module")
def plug_in(model_folder):
    names = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.models": {},
        "lmms_eval.api.instance": {"GenerationResult": tuple},
        "lmms_eval.api.model": {"lmms": type("lmms", (), {"rank": 0, "__init__": lambda self: None})},
        "lmms_eval.models.registry_v2": {"ModelManifest": lambda *args, **kwargs: None},
        "lmms_eval.utils": {"Collator": Collator},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in names.items():
            module = types.ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "unicorn_hf.evaluation.lmms_eval_model", raising=False)
        from unicorn_hf.evaluation.lmms_eval_model import Unicorn

        yield Unicorn(str(model_folder), device="cpu", dtype="float32")
        sys.modules.pop("unicorn_hf.evaluation.lmms_eval_model", None)


def picture(seed: int) -> Image.Image:
    rng = random.Random(seed)
    size = (rng.randrange(1, 90), rng.randrange(1, 90))
    return Image.new(rng.choice(["RGB", "L", "RGBA", "P", "1"]), size, rng.randrange(256))


def ask(plug_in, documents, batch_size: int) -> list[str]:
    """documents: (question, pictures, options)."""
    plug_in.batch_size = batch_size
    plug_in.task_dict = {"colours": {"test": [{"pictures": pictures} for _, pictures, _ in documents]}}
    requests = [
        types.SimpleNamespace(args=(question, options, lambda document: document["pictures"], row, "colours", "test"))
        for row, (question, _, options) in enumerate(documents)
    ]
    return plug_in.generate_until(requests)


def rows():
    pictures = st.lists(st.integers(0, 50).map(picture), max_size=2)
    return st.tuples(st.sampled_from(QUESTIONS), pictures, st.sampled_from(OPTIONS))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows(), min_size=1, max_size=9), st.integers(1, 5))
def test_in_batches_every_request_gets_the_answer_to_its_own_question_and_pictures(plug_in, documents, batch_size):
    said = ask(plug_in, documents, batch_size)
    model, processor = plug_in.model, plug_in.processor
    for (question, pictures, options), got in zip(documents, said, strict=True):
        vectors = encode_images(model, processor, pictures)
        alone = answer(model, processor, question, vectors, max_new_tokens=options["max_new_tokens"])
        assert got == alone.split("\n")[0].strip() or ("until" not in options and got == alone)


class Broken(dict):
    """A document whose picture cannot be decoded, as `datasets` finds out when it is looked at."""

    def __getitem__(self, name):
        raise SyntaxError("broken PNG file")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("giant", "20000 x 20000 pixels"),
        ("giant file", "exceeds limit"),
        ("half of a file", "cannot be read as an image"),
        ("no picture", "cannot be read as an image"),
        ("no file", "no such image"),
        ("a broken row", "broken PNG file"),
        ("a row that is not there", "index out of range"),
    ],
)
def test_a_picture_that_cannot_be_read_is_one_sentence_with_its_document(
    plug_in, tmp_path, monkeypatch, what, reason, batch_size
):
    path = tmp_path / "picture.png"
    picture(1).convert("RGB").save(path)
    pictures = [picture(2)]
    if what == "giant":
        pictures = [Image.new("1", (20_000, 20_000))]
    elif what == "giant file":
        Image.new("1", (20_000, 20_000)).save(path)
        pictures = [str(path)]
    elif what == "half of a file":
        pictures = [{"bytes": path.read_bytes()[:60], "path": None}]
    elif what == "no picture":
        pictures = [np.zeros(3)]
    elif what == "no file":
        pictures = [str(tmp_path / "none.png")]
    documents = [(QUESTIONS[0], [picture(row)], OPTIONS[0]) for row in range(5)]
    documents[3] = (QUESTIONS[0], pictures, OPTIONS[0])
    real = plug_in._document
    if what == "a broken row":
        monkeypatch.setattr(plug_in, "_document", lambda row, *others: Broken() if row == 3 else real(row, *others))
    elif what == "a row that is not there":
        monkeypatch.setattr(plug_in, "_document", lambda row, *others: real(row + 10 * (row == 3), *others))
    with pytest.raises(InputError, match=f"Task colours, split test, document 3: .*{reason}.*remove the document"):
        ask(plug_in, documents, batch_size)
