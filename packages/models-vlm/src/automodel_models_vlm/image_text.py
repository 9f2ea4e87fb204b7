"""The data set providers: thin signatures over one way of reading conversations about images."""

from __future__ import annotations

from typing import Literal

from automodel_models_vlm.conversations import ImageConversations
from automodel_models_vlm.formats import Cord, Messages, Pairs
from automodel_models_vlm.rows import find_rows


def image_chat(
    data_path: str | list[str],
    column: str | None = None,
    image_column: str | None = None,
    system_prompt: str | None = None,
    split: str | None = None,
    name: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit_dataset_samples: int | None = None,
) -> ImageConversations:
    """Conversations with images: `messages` whose parts hold images, or `<image>` in texts and a column of images.

    An image is a path (relative to the file with the row), base64 text (`data:image/png;base64,...`), or bytes.

    Args:
        data_path: a JSONL, JSON, CSV, TSV or Parquet file, a glob, a directory, a list of those; a directory that
            `datasets` has saved; or the name of a Hub data set.
        column: the column with the messages; null is `messages` or `conversations`.
        image_column: the column with the images that have no place in a message; null is `images` or `image`.
        system_prompt: put before conversations that have no system message.
        split: which files of a directory, or which split of a Hub data set.
        name: configuration of a Hub data set.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        limit_dataset_samples: read only the first rows.

    Raises:
        InputError: no such data, or rows that cannot be used; names file and line.
    """
    rows = find_rows(data_path, split, name)
    return ImageConversations(rows, Messages(column, image_column, system_prompt), on_bad_row, limit_dataset_samples)


def image_text_pairs(
    data_path: str | list[str],
    image_column: str = "image",
    answer_column: str = "text",
    question_column: str | None = None,
    prompt: str = "Describe this image.",
    system_prompt: str | None = None,
    split: str | None = None,
    name: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    limit_dataset_samples: int | None = None,
) -> ImageConversations:
    """An image and a text a row: captions, labels, or answers to a question in another column.

    Args:
        data_path: as in image-chat.
        image_column: the column with the image, or a list of them.
        answer_column: the column with what the model is to say.
        question_column: the column with the question; null asks `prompt` of every image.
        prompt: the question where there is no question_column.
        system_prompt: put before each conversation.
        split: which files of a directory, or which split of a Hub data set.
        name: configuration of a Hub data set.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        limit_dataset_samples: read only the first rows.

    Raises:
        InputError: no such data, or rows that cannot be used; names file and line.
    """
    rows = find_rows(data_path, split, name)
    pairs = Pairs(image_column, answer_column, question_column, prompt, system_prompt)
    return ImageConversations(rows, pairs, on_bad_row, limit_dataset_samples)


def cord_v2(
    path_or_dataset: str | list[str] = "naver-clova-ix/cord-v2",
    split: str = "train",
    target: Literal["tokens", "json"] = "tokens",
    prompt: str = "Describe this image.",
    on_bad_row: Literal["error", "skip"] = "error",
    limit_dataset_samples: int | None = None,
) -> ImageConversations:
    """Receipts and what is written on them, in the structure of CORD-v2: columns `image` and `ground_truth`.

    Args:
        path_or_dataset: a Hub data set, a directory (also one that `datasets` has saved), or a file.
        split: train, validation or test.
        target: what the model learns to write: `tokens`, as Donut does (`<s_total>...</s_total>`), or `json`.
        prompt: what is asked of each image.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        limit_dataset_samples: read only the first rows.

    Raises:
        InputError: no such data, or rows that cannot be used; names them.
    """
    return ImageConversations(
        find_rows(path_or_dataset, split), Cord(target, prompt), on_bad_row, limit_dataset_samples
    )


def rdr(
    path_or_dataset: str | list[str] = "quintend/rdr-items",
    split: str = "train",
    on_bad_row: Literal["error", "skip"] = "error",
) -> ImageConversations:
    """Images and their descriptions, in columns `image` and `text`: NeMo's make_rdr_dataset.

    Args:
        path_or_dataset: as in cord-v2.
        split: which split.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.

    Raises:
        InputError: no such data, or rows that cannot be used; names them.
    """
    return image_text_pairs(
        path_or_dataset, split=split, prompt="Describe accurately the given image.", on_bad_row=on_bad_row
    )


def medpix(
    path_or_dataset: str | list[str] = "mmoukouba/MedPix-VQA",
    split: str = "train",
    on_bad_row: Literal["error", "skip"] = "error",
) -> ImageConversations:
    """Questions about images, in columns `image_id`, `question` and `answer`: NeMo's make_medpix_dataset.

    Args:
        path_or_dataset: as in cord-v2.
        split: which split.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.

    Raises:
        InputError: no such data, or rows that cannot be used; names them.
    """
    return image_text_pairs(
        path_or_dataset,
        image_column="image_id",
        question_column="question",
        answer_column="answer",
        split=split,
        on_bad_row=on_bad_row,
    )
