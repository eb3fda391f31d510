import datasets
import pytest

from unicorn_hf import write_captions
from unicorn_hf.errors import InputError
from unicorn_hf.sandbox.world import split_scenes
from unicorn_hf.synthesis.grammar import parse_caption

SEEDS = ["red circle, small, top left, white background", "blue square, large; green cross, small, left of"]


def test_every_caption_says_what_its_seed_says():
    scenes = split_scenes(0, num_captions=200, num_pictures=10, num_test=10).captions
    of_seed = {scene.seed(): scene for scene in scenes}
    captions = write_captions(list(of_seed), writer="grammar")
    assert len(captions) > 2 * len(of_seed)
    for row in captions:
        scene, read = of_seed[row["seed"]], parse_caption(row["caption"])
        assert {(thing.color, thing.shape) for thing in read.things} == {(x.color, x.shape) for x in scene.things}
        assert read.position in (None, scene.position)
        assert read.background in (None, scene.background)


def test_captions_are_written_once_and_read_back(tmp_path):
    written = write_captions([*SEEDS, SEEDS[0].upper()], tmp_path / "captions", writer="grammar")
    read = datasets.load_dataset(str(tmp_path / "captions"), split="train")
    assert read.to_list() == written.to_list()
    assert read.column_names == ["id", "seed", "domain", "caption"]
    assert len(set(read["caption"])) == len(set(read["id"])) == len(read)


def test_a_caption_depends_on_its_own_seed_only():
    alone, together = (write_captions(seeds, writer="grammar") for seeds in (SEEDS[1:], SEEDS))
    assert set(alone["caption"]) <= set(together["caption"])


def test_blank_lines_are_no_seeds(tmp_path):
    file = tmp_path / "seeds.txt"
    file.write_text(f"\n{SEEDS[0]}\n   \n\n", encoding="utf-8")
    assert set(write_captions(file, writer="grammar")["seed"]) == {SEEDS[0]}


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        (["\n", "  "], {}, "holds no seed"),
        (["a dog on a lawn"], {}, "grammar writer expects"),
        ([3], {}, "row 0: the seed is 3"),
        (SEEDS, {"writer": "parrot"}, "--writer is 'parrot'; expected one of grammar, chat"),
        (SEEDS, {"writer": None}, "--writer is missing; name one of grammar, chat, transformers, batch"),
        (SEEDS, {"writers": "chat"}, "there is no option 'writers'; did you mean writer"),
        (SEEDS, {"model": "m"}, "--model: the grammar writer does not read it"),
        (SEEDS, {"captions_per_seed": 0}, "--captions-per-seed is 0; expected a whole number from 1 to 1,000,000"),
        ("nowhere.txt", {}, "no such file"),
    ],
)
def test_unusable_input_is_one_sentence_and_leaves_nothing_behind(tmp_path, seeds, options, message):
    with pytest.raises(InputError, match=message) as raised:
        write_captions(seeds, tmp_path / "captions", **{"writer": "grammar", **options})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_two_folders_of_one_name_are_two_datasets(tmp_path):
    for count in (1, 2):
        write_captions(SEEDS, tmp_path / str(count) / "captions", writer="grammar", captions_per_seed=count)
    sizes = [len(datasets.load_dataset(str(tmp_path / str(count) / "captions"), split="train")) for count in (1, 2)]
    assert sizes == [2, 4]
