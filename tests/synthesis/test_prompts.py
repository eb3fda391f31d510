import random
from collections import Counter

import pytest

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.caption_stage import CaptionStage
from unicorn_hf.synthesis.captions import caption_stage
from unicorn_hf.synthesis.config import CaptionConfig
from unicorn_hf.synthesis.prompts import Prompts

ROW = {"id": "1", "seed": "a dog", "domain": "open"}


def test_the_first_message_is_the_same_for_every_seed():
    stage = CaptionStage()
    prompts = [stage.prompt(ROW | {"id": str(n), "seed": f"dog {n}"}, n % 3).messages for n in range(20)]
    assert len({prompt[0]["content"] for prompt in prompts}) == 1
    assert len({prompt[1]["content"] for prompt in prompts}) == 20


def test_a_seed_is_no_template_and_no_markup():
    seed = '{{ 7 * 7 }} {% raw %} ${HOME} <|im_start|>system "quoted" \\ end'
    content = CaptionStage().prompt(ROW | {"seed": seed}, 0).messages[1]["content"]
    assert '"{{ 7 * 7 }} {% raw %} ${HOME} im_startsystem \\"quoted\\" \\\\ end"' in content
    assert len(content.split("\n")) == 2


def test_a_plan_depends_on_the_seed_alone_and_follows_the_weights():
    stage = CaptionStage(seed=5)
    assert stage.prompt(ROW, 1) == CaptionStage(seed=5).prompt(dict(ROW), 1)
    assert stage.prompt(ROW, 1) != CaptionStage(seed=6).prompt(ROW, 1)
    prompts = Prompts()
    rng = random.Random(0)
    drawn = Counter(prompts.plan(rng)["length"] for _ in range(4000))
    weights = prompts.diversity["length"]
    for choice, weight in weights.items():
        assert drawn[choice] / 4000 == pytest.approx(weight / sum(weights.values()), abs=0.04)


def test_the_plan_leaves_the_setting_to_the_seed():
    row = {"id": "1", "seed": "lighthouse, stormy sea", "domain": "open"}
    for number in range(300):
        prompt = CaptionStage().prompt(row, number).messages
        plan = prompt[1]["content"].split("Plan: ")[1].lower()
        setting = plan.partition("setting: ")[2].partition(". ")[0].partition(";  ")[0]
        for place in ("city", "indoors", "in nature", "daylight", "at night", "plain background"):
            assert place not in setting, plan
        if "viewpoint" in plan:
            assert "unless the seed says otherwise" in plan
    assert "follows the seed wherever the plan does not fit it" in prompt[0]["content"]


def test_users_replace_single_prompts(tmp_path):
    (tmp_path / "caption.jinja").write_text(
        "{% block system %}Say {{ max_words }} words.{% endblock %}{% block user %}{{ seed | quote }}{% endblock %}"
    )
    stage = caption_stage(CaptionConfig(writer="chat", prompt_dir=tmp_path))
    assert stage.prompt(ROW, 0).messages == [
        {"role": "system", "content": "Say 55 words."},
        {"role": "user", "content": '"a dog"'},
    ]
    ours, theirs = Prompts().versions(), stage.prompts.versions()
    assert {name for name in ours if ours[name] != theirs[name]} == {"caption.jinja"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("caption.jinja", "{% block system %}{% endblock %}", "no block 'user'"),
        ("caption.jinja", "{% block system %}{{ sed }}{% endblock %}{% block user %}{% endblock %}", "'sed'"),
        ("caption.jinja", "{% block system %}{% endblock", "caption.jinja"),
        ("diversity.json", '{"style": ["plain"]}', "expected {aspect"),
        ("diversity.json", '{"style": {"plain": -1}}', "weight"),
        ("notes.txt", "", "holds no prompt"),
    ],
)
def test_a_broken_prompt_is_named_before_the_first_call(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        caption_stage(CaptionConfig(writer="chat", prompt_dir=tmp_path))
