"""Images: every mode becomes RGB, upright; those that are missing or broken are told by their row."""

import base64
import io

import numpy as np
import pytest
from automodel import InputError
from automodel.training.dataloader import DataLoader
from automodel_huggingface.bad_rows import BadRowError
from automodel_models_vlm.image_text import image_text_pairs
from automodel_models_vlm.images import load_image
from PIL import Image

Turn = Image.Transpose
GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def pair(image):
    return {"image": str(image), "text": "a"}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(value, directory=None):
    image = load_image(value, directory)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    red = Image.new("RGB", (8, 8), "white" if mode in {"L", "LA", "1"} else "red").convert(mode)
    expected = [255, 255, 255] if mode in {"L", "LA", "1"} else [255, 0, 0]
    assert (pixels(encoded(red, "TIFF" if mode == "CMYK" else "PNG")) == expected).all()
    assert (pixels(red) == expected).all()


def test_grey_images_keep_their_values():
    assert (pixels(encoded(Image.fromarray(GRADIENT))) == GRADIENT[..., None]).all()


def test_images_of_16_bits_keep_their_high_byte():
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 256 + 17)
    assert (pixels(encoded(deep)) == GRADIENT[..., None]).all()
    assert (pixels(deep) == GRADIENT[..., None]).all()


LYING = [None, Turn.FLIP_LEFT_RIGHT, Turn.ROTATE_180, Turn.FLIP_TOP_BOTTOM]
LYING += [Turn.TRANSPOSE, Turn.ROTATE_90, Turn.TRANSVERSE, Turn.ROTATE_270]


@pytest.mark.parametrize(("orientation", "turn"), list(enumerate(LYING, start=1)))
def test_images_stand_upright_as_their_exif_data_say(orientation, turn):
    upright = Image.new("RGB", (24, 16))
    upright.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = upright if turn is None else upright.transpose(turn)
    assert (pixels(encoded(lying, exif=exif)) == np.asarray(upright)).all()


def test_bytes_paths_base64_and_structs_are_one_image(picture):
    path = picture("red")
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = ["red.png", str(path), url, data, {"bytes": data, "path": None}, {"bytes": None, "path": "red.png"}]
    for form in [*forms, Image.open(path)]:
        assert (pixels(form, path.parent) == [255, 0, 0]).all()


def test_a_missing_file_is_told_by_line_before_training(write, picture):
    with pytest.raises(InputError, match=r"train\.jsonl:2: there is no image file .*/nowhere\.png"):
        image_text_pairs(write(pair(picture("red")), pair("nowhere.png")))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_are_not_fetched(scheme, write):
    with pytest.raises(InputError, match=rf"train\.jsonl:1: the image {scheme}://a\.b/c\.png is not fetched"):
        image_text_pairs(write(pair(f"{scheme}://a.b/c.png")))


def test_what_is_no_base64_text_is_told_by_line(write):
    with pytest.raises(InputError, match=r"train\.jsonl:1: an image is no base64 text"):
        image_text_pairs(write(pair("data:image/png;base64,???")))


def test_base64_with_letters_beyond_ascii_is_told_by_line(write):
    with pytest.raises(InputError, match=r"train\.jsonl:1: an image is no base64 text"):
        image_text_pairs(write(pair("data:image/png;base64,äöü")))


def test_base64_without_its_heading_is_told_by_line(write):
    with pytest.raises(InputError, match=r"train\.jsonl:1: there is no image file"):
        image_text_pairs(write(pair("a" * 300)))


def broken(kind, directory):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = b"no image" if kind == "txt" else encoded(noise, {"png": "PNG", "jpg": "JPEG"}[kind])
    path = directory / f"broken.{kind}"
    path.write_bytes(content if kind == "txt" else content[: len(content) // 2])
    return path


@pytest.mark.parametrize("kind", ["png", "jpg", "txt"])
def test_a_broken_image_is_told_by_line_when_it_is_taken(kind, write, picture, tmp_path):
    dataset = image_text_pairs(write(pair(picture("red")), pair(broken(kind, tmp_path))))
    assert len(dataset) == 2
    with pytest.raises(InputError, match=rf"train\.jsonl:2: the image .*broken\.{kind} is broken"):
        dataset[1]


def test_a_file_that_is_gone_since_is_told_by_line(write, picture):
    dataset = image_text_pairs(write(pair(picture("red"))))
    picture("red").unlink()
    with pytest.raises(InputError, match=r"train\.jsonl:1: there is no image file .*red\.png"):
        dataset[0]


def test_broken_bytes_are_told_by_their_size():
    with pytest.raises(BadRowError, match="the image of 8 bytes is broken, or no image"):
        load_image(b"no image", None)
    with pytest.raises(BadRowError, match="an image is null"):
        load_image({"bytes": None, "path": None}, None)


def test_a_broken_image_in_a_data_worker_is_told_by_line(write, picture, tmp_path, processor_of):
    dataset = image_text_pairs(write(pair(picture("red")), pair(picture("red")), pair(broken("png", tmp_path))))
    loader = DataLoader(dataset, processor_of("qwen3_vl"), batch_size=2, shuffle=False, num_workers=1)
    batches = loader.micro_batches(0)
    assert next(batches)["input_ids"].shape[0] == 2
    with pytest.raises(InputError) as error:
        next(batches)
    assert str(error.value).startswith(f"{tmp_path}/train.jsonl:3: the image {tmp_path}/broken.png is broken")
