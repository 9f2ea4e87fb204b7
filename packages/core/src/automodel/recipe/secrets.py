"""Which keys hold secrets, which never leave this process."""

from __future__ import annotations

import re

HIDDEN = "***"
ALWAYS = {"apikey", "password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials"}
AT_THE_END = {"token", "key"}
"""`hf_token` and `api_key`, not `token_ids` or `num_key_value_heads`."""
VOCABULARY = {
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio", "start", "end", "begin", "stop",
    "special", "response", "turn", "prefix", "suffix",
}  # fmt: skip
"""`pad_token`, `start_of_response_token`: a token of a tokenizer."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret(name: str) -> bool:
    """Whether a key of that name holds a secret: `api_key` and `HF_TOKEN` do, `max_tokens` and `pad_token` do not."""
    words = [word.lower() for word in WORD.findall(name)]
    if ALWAYS & set(words):
        return True
    if words[-1:] == ["id"]:  # AWS_ACCESS_KEY_ID
        words.pop()
    return bool(words) and words[-1] in AT_THE_END and not VOCABULARY & set(words)
