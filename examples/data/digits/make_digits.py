"""Write examples/data/digits: scikit-learn's handwritten digits, an image and its name a row.

uv run --with scikit-learn python examples/data/digits/make_digits.py
"""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_VALIDATION = 297


def png(pixels):
    """An 8 x 8 image of values from 0 to 16 as a grey PNG, dark on white as on paper."""
    image = Image.fromarray((255 - pixels * 255 / 16).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    directory = Path(__file__).parent
    features = datasets.Features({"image": datasets.Image(), "digit": datasets.Value("string")})
    for split, chosen in (("train", order[NUM_VALIDATION:]), ("validation", order[:NUM_VALIDATION])):
        rows = {
            "image": [{"bytes": png(digits.images[index]), "path": f"{index}.png"} for index in chosen],
            "digit": [NAMES[digits.target[index]] for index in chosen],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(directory / f"{split}.parquet")


if __name__ == "__main__":
    main()
