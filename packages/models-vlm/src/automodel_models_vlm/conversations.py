"""The data set: conversations about images, decoded where a sample is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from automodel import InputError
from automodel.notices import notice
from automodel_huggingface.bad_rows import BadRowError, RowReport
from automodel_huggingface.sources import Row

from automodel_models_vlm.collate import conversations
from automodel_models_vlm.formats import Format
from automodel_models_vlm.images import check_image, load_image
from automodel_models_vlm.rows import Rows


class ImageConversations:
    """Samples of `conversation`, its decoded `images` in their order, and the row's `place`; map-style.

    Args:
        rows: read one by one.
        row_format: what a row says.
        on_bad_row: rows that cannot be used are an error, or are left out and counted.
        limit: rows that are read at most, or None.

    Raises:
        InputError: rows that cannot be used; names them. Images are looked for, but decoded only in `__getitem__`.
    """

    def __init__(
        self, rows: Rows, row_format: Format, on_bad_row: Literal["error", "skip"] = "error", limit: int | None = None
    ) -> None:
        if limit is not None and limit < 1:
            raise InputError(f"limit_dataset_samples: {limit} leaves no rows")
        self._rows, self._format = rows, row_format
        self._usable = self._checked(on_bad_row, len(rows) if limit is None else limit)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The samples of a micro-batch, which torch's loader asks for at once."""
        return [self._sample(row) for row in self._rows.take([self._usable[index] for index in indices])]

    def _sample(self, row: Row) -> Mapping[str, Any]:
        try:
            said = self._format(row.columns())
            images = [load_image(image, _directory(row)) for image in said.images]
        except BadRowError as error:
            raise InputError(f"{row.place}: {error}") from error
        return {"conversation": said.conversation, "images": images, "place": row.place}

    def default_collate(self, processor: Any) -> Any:
        """How these samples become a micro-batch where `dataloader.collate_fn` says nothing."""
        return conversations(processor)

    def _checked(self, on_bad_row: Literal["error", "skip"], limit: int) -> list[int]:
        report = RowReport(on_bad_row, "error", None)
        usable = []
        for index, row in enumerate(self._rows.without_images()):
            if index == limit:
                break
            try:
                said = self._format(row.columns())
                if not said.images:
                    raise BadRowError("no image: rows of text only belong to a model of text")
                for image in said.images:
                    check_image(image, _directory(row))
            except BadRowError as error:
                report.bad(row.place, str(error))
            else:
                usable.append(index)
        for message in report.settle():
            notice(message)
        if not usable:
            raise InputError("the data set holds no row that can be used")
        return usable


def _directory(row: Row) -> Path:
    """What relative paths of images start from: the directory of the row's file, or that of a saved data set."""
    path = Path(row.file)
    return path if path.is_dir() else path.parent
