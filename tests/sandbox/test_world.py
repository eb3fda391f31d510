import random

import numpy as np
import pytest

from unicorn_hf.sandbox.world import check_answer, color_shape_pair, draw, draw_all, held_out_pairs, split_scenes
from unicorn_hf.synthesis.grammar import TASKS, GrammarWriter, scene_questions
from unicorn_hf.synthesis.scene import COLORS, SHAPES, Scene, Thing, all_scenes

CROSS = Scene((Thing("red", "cross", "large"),), background="white", position="top left")
PAIR = Scene((Thing("red", "circle", "small"), Thing("blue", "square", "large")), background="gray", relation="left of")


def test_a_picture_is_64_pixels_square_and_shows_its_colors_where_the_scene_says():
    picture = np.asarray(draw(CROSS, np.random.default_rng(0)), dtype=int)
    assert picture.shape == (64, 64, 3)
    assert np.abs(picture[17, 17] - (220, 40, 40)).max() < 60
    assert np.abs(picture[50, 50] - (245, 245, 245)).max() < 60


def test_the_first_object_stands_where_its_relation_says():
    picture = np.asarray(draw(PAIR, np.random.default_rng(0)), dtype=int)
    left, right = picture[32, 17], picture[32, 47]
    assert left[0] > left[2] + 50  # red
    assert right[2] > right[0] + 50  # blue


def test_two_pictures_of_one_scene_differ_and_the_same_seed_repeats_them():
    one, other = draw_all([PAIR, PAIR], seed=3)
    assert np.any(np.asarray(one) != np.asarray(other))
    assert all(
        np.array_equal(a, b) for a, b in zip(map(np.asarray, (one, other)), draw_all([PAIR, PAIR], seed=3), strict=True)
    )


def test_a_tenth_of_the_color_shape_pairs_is_held_out_and_only_the_test_shows_them():
    held_out = held_out_pairs()
    assert len(held_out) == 28  # of 276
    split = split_scenes(0, 2000, 2000, 400)
    assert (len(split.captions), len(split.pictures), len(split.test)) == (2000, 2000, 400)
    for scenes in (split.captions, split.pictures):
        assert not any(color_shape_pair(scene) in held_out for scene in scenes)
    assert all(color_shape_pair(scene) in held_out for scene in split.test if len(scene.things) == 2)


def test_the_three_sets_of_scenes_share_no_scene():
    split = split_scenes(1, 3000, 3000, 500)
    assert not set(split.captions) & set(split.pictures)
    assert not set(split.captions) & set(split.test)
    assert not set(split.pictures) & set(split.test)


def test_the_world_has_every_combination_once():
    one, two = all_scenes()
    assert len(one) == len(set(one)) == 6 * 4 * 2 * 4 * 5
    assert len(two) == len(set(two)) == 276 * 4 * 4 * 4
    assert {scene.things[0].color for scene in one} == set(COLORS)
    assert {scene.things[0].shape for scene in one} == set(SHAPES)


@pytest.mark.parametrize("task", TASKS)
def test_the_world_agrees_with_every_answer_the_writer_gives(task):
    rng = random.Random(0)
    one, two = all_scenes()
    writer = GrammarWriter()
    for scene in rng.sample(one, 50) + rng.sample(two, 150):
        for caption in writer.captions(scene.seed(), 3, rng):
            messages = writer.conversation(caption, task, rng)
            for question, answer in zip(messages[::2], messages[1::2], strict=True):
                assert check_answer(scene, question["content"], answer["content"]), (scene, caption, question, answer)


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("How many objects are there?", "one"),
        ("What color is the circle?", "blue"),
        ("What size is the square?", "small"),
        ("Where is the circle, seen from the square?", "right of"),
        ("Which object is larger?", "the red circle"),
        ("Are the two objects of the same size?", "yes"),
        ("What color is the circle?\n(A) red\n(B) blue", "red (B)"),
    ],
)
def test_the_world_refuses_a_wrong_answer(question, wrong):
    assert not check_answer(PAIR, question, wrong)


def test_questions_cover_all_kinds():
    kinds = {kind for scene in (CROSS, PAIR) for task in TASKS for kind, *_ in scene_questions(scene, task, random)}
    assert kinds == {"color", "shape", "size", "position", "background", "count", "comparison", "relation"}
