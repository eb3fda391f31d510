"""What all methods share: fitting, applying, conditioning, saving, refusing."""

import datasets
import numpy as np
import pytest
import torch

import unicorn_hf
from unicorn_hf import InputError, ModalityTransfer
from unicorn_hf.data import vector_sets
from unicorn_hf.transfer import NoTransfer, ReAlign
from unicorn_hf.transfer.modality_transfer import METHODS, method_class

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@EVERY_METHOD
def test_every_method_gives_unit_rows_that_come_back_from_its_files(method, text, image, tmp_path):
    transfer = ModalityTransfer.fit(text, image, method=method)
    assert transfer.method == method
    moved = transfer.apply(text)
    assert (moved.dtype, moved.shape) == (np.float32, text.shape)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)
    transfer.save_pretrained(tmp_path / "transfer")
    files = {path.name for path in (tmp_path / "transfer").iterdir()}
    assert files == {"transfer.safetensors", "transfer_config.json", "README.md"}
    loaded = ModalityTransfer.from_pretrained(tmp_path / "transfer")
    assert type(loaded) is method_class(method)
    assert loaded.config == transfer.config
    np.testing.assert_array_equal(loaded.apply(text), moved)
    np.testing.assert_array_equal(loaded.condition_image(image), transfer.condition_image(image))


@EVERY_METHOD
def test_every_method_but_none_closes_the_centroid_distance(method, text, image):
    config = ModalityTransfer.fit(text, image, method=method).config
    distance = np.linalg.norm(unit(text).mean(0) - unit(image).mean(0))
    assert config["centroid_distance_before"] == pytest.approx(distance, abs=1e-6)
    if method == "none":
        assert config["centroid_distance_after"] == pytest.approx(distance, abs=1e-6)
    else:
        assert config["centroid_distance_after"] < 0.2 * distance


def test_the_distance_after_is_of_the_rows_that_are_kept(text, image):
    expected = ModalityTransfer.fit(np.delete(text, 3, axis=0), image, method="mean_shift").config
    text[3] = np.nan
    config = ModalityTransfer.fit(text, image, method="mean_shift", skip_non_finite=True).config
    assert config["centroid_distance_after"] == pytest.approx(expected["centroid_distance_after"], abs=1e-6)


@EVERY_METHOD
@pytest.mark.parametrize("threads", [1, 8])
def test_blocks_and_threads_do_not_change_the_output(method, threads, text, image, monkeypatch):
    expected = ModalityTransfer.fit(text, image, method=method).apply(text)
    monkeypatch.setattr(vector_sets, "THREADS", threads)
    transfer = ModalityTransfer.fit(text, image, method=method)
    one_by_one = np.stack([transfer.apply(row) for row in text[:50]])
    np.testing.assert_allclose(one_by_one, expected[:50], rtol=0, atol=1e-6)
    np.testing.assert_allclose(transfer.apply(text[::-1])[::-1], expected, rtol=0, atol=1e-6)


@EVERY_METHOD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_moved_as_arrays_are(method, dtype, text, image):
    transfer = ModalityTransfer.fit(text, image, method=method)
    tensor = torch.from_numpy(text).to(dtype)
    for verb in (transfer.apply, transfer.condition_image):
        moved = verb(tensor)
        assert (moved.dtype, moved.device) == (torch.float32, tensor.device)
        np.testing.assert_allclose(moved.numpy(), verb(tensor.float().numpy()), rtol=0, atol=1e-6)


@pytest.mark.gpu
@EVERY_METHOD
def test_tensors_are_moved_on_their_own_device(method, text, image):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    transfer = ModalityTransfer.fit(torch.from_numpy(text).cuda(), torch.from_numpy(image).cuda(), method=method)
    moved = transfer.apply(torch.from_numpy(text).cuda())
    assert moved.is_cuda
    np.testing.assert_allclose(moved.cpu().numpy(), transfer.apply(text), rtol=0, atol=2e-6)


def test_real_images_only_get_unit_length_in_image_space(text, image):
    for method in METHODS:
        conditioned = ModalityTransfer.fit(text, image, method=method).condition_image(image)
        np.testing.assert_allclose(conditioned, unit(image), rtol=0, atol=1e-6)


def test_a_dataset_comes_back_with_one_column_more(text, image, make_dataset):
    transfer = ReAlign.fit(make_dataset(text), make_dataset(image, "image_embeds"))
    dataset = make_dataset(text).shuffle(seed=1)
    moved = transfer.apply(dataset)
    assert moved.column_names == ["id", "caption", "text_embeds", "image_embeds"]
    assert moved.features["image_embeds"] == datasets.List(datasets.Value("float16"), length=text.shape[1])
    assert moved["id"][:] == dataset["id"][:]
    expected = transfer.apply(np.stack(dataset.with_format("numpy")["text_embeds"][:]).astype(np.float32))
    np.testing.assert_allclose(np.array(moved["image_embeds"][:]), expected, atol=3e-4)


def test_a_folder_is_fitted_and_moved_like_its_array(text, image, make_folder):
    transfer = ModalityTransfer.fit(make_folder(text), make_folder(image, "image_embeds"))
    assert transfer.config["text_encoder"] == transfer.config["image_encoder"] == "sandbox"
    expected = ReAlign.fit(text, image).apply(text)
    np.testing.assert_allclose(transfer.apply(text), expected, rtol=0, atol=1e-6)
    moved = transfer.apply(make_folder(text, encoder="sandbox-again"), encoder="sandbox")
    np.testing.assert_allclose(np.array(moved["image_embeds"][:]), expected, atol=3e-4)


def test_vectors_of_another_encoder_are_refused(text, image, make_folder, tmp_path):
    transfer = ModalityTransfer.fit(make_folder(text), image)
    other = make_folder(text, encoder="other")
    with pytest.raises(InputError, match=r"'other'.*'sandbox'"):
        transfer.apply(other)
    with pytest.raises(InputError, match=r"'other'.*'sandbox'"):
        transfer.apply(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"'other'.*'sandbox'"):
        ModalityTransfer.fit(other, make_folder(image, "image_embeds"))
    with pytest.raises(InputError, match="'other', not by 'sandbox'"):
        ModalityTransfer.fit(other, image, encoder="sandbox")


def test_vectors_of_another_dimension_are_refused(text, image):
    transfer = ModalityTransfer.fit(text, image)
    for verb in (transfer.apply, transfer.condition_image):
        for rows in (text[:, :8], torch.from_numpy(text[:, :8])):
            with pytest.raises(InputError, match=r"8 dimensions.*fitted on 32"):
                verb(rows)
    with pytest.raises(InputError, match="32 dimensions and the image vectors 8"):
        ModalityTransfer.fit(text, image[:, :8])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_rows_without_direction_are_refused_by_id(value, text, image, make_dataset):
    transfer = ModalityTransfer.fit(text, image)
    broken = text.copy()
    broken[700] = value
    for rows in (broken, torch.from_numpy(broken)):
        with pytest.raises(InputError, match="row 700"):
            transfer.apply(rows)
    for use in (transfer.apply, lambda dataset: ModalityTransfer.fit(dataset, image)):
        with pytest.raises(InputError, match=r"row 700 \(id 'a700'\) of 'text_embeds'"):
            use(make_dataset(broken))
    fitted = ModalityTransfer.fit(make_dataset(broken), image, skip_non_finite=True)
    assert fitted.config["skipped"] == ["row 700 (id 'a700')"]
    assert fitted.config["text_count"] == len(text) - 1


def test_an_unknown_method_or_option_is_refused_with_the_known_ones(text, image):
    with pytest.raises(InputError, match="no transfer method 'magic'; the methods are none, mean_shift, realign"):
        ModalityTransfer.fit(text, image, method="magic")
    with pytest.raises(InputError, match="'realign' has no option 'sigma'"):
        ModalityTransfer.fit(text, image, sigma=0.1)
    with pytest.raises(InputError, match="fits 'realign', not 'none'"):
        ReAlign.fit(text, image, method="none")


def test_what_is_no_transfer_is_not_loaded(text, image, tmp_path):
    with pytest.raises(InputError, match="holds no readable transfer"):
        ModalityTransfer.from_pretrained(tmp_path)
    folder = NoTransfer.fit(text, image).save_pretrained(tmp_path / "none")
    with pytest.raises(InputError, match="by 'none', not by 'realign'"):
        ReAlign.from_pretrained(folder)
    (folder / "transfer.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="holds no readable transfer"):
        ModalityTransfer.from_pretrained(folder)


def test_the_card_names_encoders_counts_and_the_distance(text, image):
    transfer = ModalityTransfer.fit(text, image, encoder="open_clip/ViT-B-32")
    card = transfer.card()
    for value in ("open_clip/ViT-B-32", "1500", "900", f"{transfer.config['centroid_distance_before']:.4g}"):
        assert value in card


def test_a_column_that_exists_is_not_overwritten(text, image, make_dataset):
    transfer = ModalityTransfer.fit(text, image)
    with pytest.raises(InputError, match="has a column 'caption' already"):
        transfer.apply(make_dataset(text), out_column="caption")


def test_public_names_lead_here():
    assert unicorn_hf.ModalityTransfer is ModalityTransfer
    assert unicorn_hf.ReAlign is ReAlign
