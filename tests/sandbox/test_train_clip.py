import json

import pytest
import torch
from safetensors.torch import load_file

from unicorn_hf import InputError
from unicorn_hf.sandbox.train_clip import GROUP, make_groups, probe, train_clip
from unicorn_hf.sandbox.world import color_shape_pair, held_out_pairs

SMALL = {"steps": 3, "batch_size": 16, "num_groups": 60, "num_probed": 400}


def test_the_members_of_a_group_are_near_misses_and_none_is_held_out():
    held_out = held_out_pairs()
    for group in make_groups(200, seed=0):
        assert len(set(group)) == GROUP
        assert not any(color_shape_pair(scene) in held_out for scene in group)
        assert all(len(scene.things) == len(group[0].things) for scene in group)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        train_clip(tmp_path / name, seed=seed, **SMALL)
    one, again, other = (
        load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("one", "again", "other")
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "one" / "README.md").read_text() == (tmp_path / "again" / "README.md").read_text()


def test_an_output_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        train_clip(tmp_path, **SMALL)


def test_the_shipped_clip_is_what_its_card_says():
    import open_clip

    from unicorn_hf.sandbox import train_clip as module

    folder = module.Path(module.__file__).parent / "clip"
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    found = probe(model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}"), num_scenes=1500)
    report = json.loads((folder / "report.json").read_text())
    for name in ("color", "shape", "size", "position", "background"):
        assert found["probes"][name] > 0.95
    for name, accuracy in report["probes"].items():  # a seventh of the scenes trains weaker probes
        assert accuracy - 0.15 < found["probes"][name] <= 1
    assert found["centroid_distance"] > 0.6
    assert found["centroid_distance"] == pytest.approx(report["centroid_distance"], abs=0.02)
