"""Receipts in the structure of CORD-v2, drawn with the font that Pillow brings: the same each time."""

import io
import json
import random

import datasets
from PIL import Image, ImageDraw, ImageFont

ITEMS = ("Nasi Campur", "Ice Tea", "Es Jeruk", "Kopi Susu", "Ayam Goreng", "Roti Bakar")


def receipt(generator, scale=1):
    """One receipt, 300 * scale pixels wide: (PNG, ground truth)."""
    menu = []
    for item in generator.sample(ITEMS, generator.randint(1, 4)):
        count, price = generator.randint(1, 4), generator.randrange(5, 80) * 1000
        menu.append({"nm": item, "cnt": str(count), "price": f"{count * price:,}"})
    total = sum(int(line["price"].replace(",", "")) for line in menu)
    lines = [f"{line['cnt']} {line['nm']}  {line['price']}" for line in menu] + [f"TOTAL {total:,}"]
    image = Image.new("RGB", (300 * scale, (30 * len(lines) + 40) * scale), "white")
    font = ImageFont.load_default(size=20 * scale)
    ImageDraw.Draw(image).multiline_text((12 * scale, 16 * scale), "\n".join(lines), fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), {"gt_parse": {"menu": menu, "total": {"total_price": f"{total:,}"}}}


def save(directory, num_rows, scale=1):
    """Write `train` and `validation` Parquet files as CORD-v2's repository has them; return the directory."""
    features = datasets.Features({"image": datasets.Image(), "ground_truth": datasets.Value("string")})
    for split in ("train", "validation"):
        made = [receipt(random.Random(f"{split} {number}"), scale) for number in range(num_rows)]
        rows = {
            "image": [{"bytes": png, "path": None} for png, _ in made],
            "ground_truth": [json.dumps(truth) for _, truth in made],
        }
        path = directory / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return directory
