"""Which keys hold secrets, which never leave this process."""

from __future__ import annotations

import re

HIDDEN = "***"
SECRET_WORDS = {"token", "key", "apikey", "password", "passwd", "secret", "credential", "credentials"}
NOT_BEFORE = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio", "start", "end", "special"}
"""`pad_token`, `image_token`: a token of a vocabulary."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret(name: str) -> bool:
    """Whether a key of that name holds a secret: `api_key` and `HF_TOKEN` do, `max_tokens` and `pad_token` do not."""
    words = [word.lower() for word in WORD.findall(name)]
    if not SECRET_WORDS & set(words):
        return False
    of_vocabulary = words[-1] in ("token", "key") and (set(words[:-1]) & NOT_BEFORE or words[0] in ("prompt", "answer"))
    return not of_vocabulary
