import pytest

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.answers import BadAnswer
from unicorn_hf.synthesis.caption_filters import CaptionFilters, check_language, read_word_list, seed_share
from unicorn_hf.synthesis.caption_length import count_tokens

SEED = "dog, running on grass"


@pytest.mark.parametrize(
    "caption",
    [
        "A brown dog runs across green grass under a low sun.",
        "Two wet dogs race over the grass beside a red-brick wall; one carries a stick.",
        "a dog on grass",
    ],
)
def test_a_sound_caption_is_kept(caption):
    CaptionFilters().check(caption, SEED)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("I'm sorry, I can't describe a dog running on grass.", "refusal"),
        ("Sure, here is a dog that runs on grass.", "chatter"),
        ("Caption: a dog runs over the grass.", "chatter"),
        ("A dog runs on grass. Let me know if you need more!", "chatter"),
        ("A **brown** dog runs on the grass.", "markdown"),
        ("- A dog runs on grass\n- A dog sits", "markdown"),
        ("Dog grass.", "too_short"),
        ("A dog runs on grass " * 40, "too_long"),
        ("A dog runs on grass to the sound of distant bells.", "non_visual"),
        ("A dog runs on grass, which symbolizes freedom.", "non_visual"),
        ("Ein brauner Hund läuft schnell über das grüne Gras.", "wrong_language"),
        ("一只棕色的狗在绿色的草地上快速奔跑着", "wrong_language"),
        ("A cat sleeps on a red chair by the window.", "seed_not_reflected"),
    ],
)
def test_an_unsound_caption_is_rejected_with_its_reason(caption, reason):
    with pytest.raises(BadAnswer) as raised:
        CaptionFilters().check(caption, SEED)
    assert raised.value.reason == reason
    assert not raised.value.malformed


@pytest.mark.parametrize(
    ("seed", "caption"),
    [
        ("robot arm welding car, factory", "robot arm welding car, factory"),
        ("robot arm welding car, factory", "Robot arm welding car; factory."),
        ("robot arm welding car, factory", "Factory: car, robot arm, welding"),
        ("robot arm welding car, factory", "A robot arm is welding a car in a factory."),
        ("robot arm welding car, factory", "Robot arms weld cars in the factory."),
        ("robot arm welding car, factory", "robot arm welding car"),
        ("狗，草地，奔跑", "草地 狗 奔跑"),
    ],
)
def test_a_caption_that_is_its_seed_again_is_rejected(seed, caption):
    with pytest.raises(BadAnswer) as raised:
        CaptionFilters(language=None, min_words=1).check(caption, seed)
    assert raised.value.reason == "repeats_seed"


@pytest.mark.parametrize(
    "caption",
    [
        "A dog runs on grass, and the breed has a 30-year history of winning shows.",
        "A dog runs on grass; the map was created by using an aerial survey.",
        "A dog runs on grass in a park with a long history.",
        "A dog runs on grass beside a mill built in 1887.",
        "A dog runs on grass; the club was founded by farmers.",
        "A dog runs on grass on a farm that dates back to the middle ages.",
        "A dog of a breed known for its patience runs on grass.",
        "A dog runs on grass in one of the largest parks in the country.",
        "A dog runs on grass in a town with a population of 4,000.",
        "A dog runs on grass, captured with the help of a drone.",
        "A dog runs on grass; the feed helps to reduce stress.",
        "A dog runs on grass on Tuesday.",
        "A dog runs on grass, according to its owner.",
        "A dog runs on grass where a market will open.",
        "A dog runs on grass with an award-winning collar, available in many colors.",
    ],
)
def test_what_no_picture_shows_is_rejected(caption):
    with pytest.raises(BadAnswer) as raised:
        CaptionFilters().check(caption, SEED)
    assert raised.value.reason == "non_visual"


@pytest.mark.parametrize(
    "caption",
    [
        "A dog runs on grass past a historic building with tall windows.",
        "A dog runs on grass beside shadows created by a row of trees.",
        "A dog runs on grass near a sign that reads open since noon.",
        "A dog runs on grass on a field used by two boys as a pitch.",
        "A dog runs on grass, taken from above, near a house built of stone.",
        "A dog runs on grass in front of a vintage 1950s car.",
        "A brown dog with a popular kind of red collar is running on grass in May sunlight.",
    ],
)
def test_what_a_picture_can_show_is_kept(caption):
    CaptionFilters().check(caption, SEED)


def test_a_word_list_is_whole_words_in_any_case(tmp_path):
    (tmp_path / "words").write_text("# rude\nGras\nsun\n")
    filters = CaptionFilters(forbidden_words=read_word_list(tmp_path / "words"))
    filters.check("A dog runs on grass in sunlight.", SEED)
    with pytest.raises(BadAnswer, match="'Sun'"):
        filters.check("A dog runs on grass. Sun above.", SEED)
    with pytest.raises(InputError, match="cannot be read"):
        read_word_list(tmp_path / "none")


def test_the_limit_of_tokens_is_clips():
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.SimpleTokenizer()
    for text in ("a photo of a cat", "A tabby's 12 kittens, curled-up; über the 日本 table!!", "x" * 50):
        assert count_tokens(text) == len(tokenizer.encode(text)) + 2


def test_a_seed_is_reflected_whatever_the_endings_of_its_words():
    assert seed_share("Several running dogs", "a dog runs") == 1.0
    assert seed_share("A cat", "a dog") == 0.0
    assert seed_share("Anything", "of the") == 1.0


def test_an_unknown_language_is_named():
    check_language("de")
    with pytest.raises(InputError, match="'klingon'"):
        check_language("klingon")
