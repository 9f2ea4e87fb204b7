"""Requests to a server of the OpenAI API on this machine."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from automodel import RunError

from automodel_deploy.interfaces import Server

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks the server itself: a proxy of the environment does not know this machine's ports."""
_HEALTH_SECONDS = 5
_ANSWER_SECONDS = 600
_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Request:
    """A request to the OpenAI API.

    Args:
        path: `/v1/chat/completions` or `/v1/completions`.
        body: as JSON has it.
    """

    path: str
    body: dict[str, Any]


def base_url(server: Server) -> str:
    """Where this machine reaches the server; `http://HOST:PORT`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(server.host, server.host)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


def is_healthy(url: str) -> bool:
    """Whether it answers 200."""
    try:
        with _DIRECT.open(url, timeout=_HEALTH_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):  # URLError and HTTPError are OSErrors
        return False


def request_for(model: str, prompt: str, max_tokens: int, *, chat: bool) -> Request:
    """A question to a model, answered with its likeliest words; a text to go on with for one that does not chat."""
    common = {"max_tokens": max_tokens, "temperature": 0}
    if chat:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **common}
        return Request("/v1/chat/completions", body)
    return Request("/v1/completions", {"model": model, "prompt": prompt, **common})


def ask(url: str, request: Request) -> str:
    """Send a request and return the text of the answer.

    Raises:
        RunError: the server refused, or did not answer as the OpenAI API does.
    """
    headers = {"Content-Type": "application/json"}
    sent = urllib.request.Request(url + request.path, json.dumps(request.body).encode(), headers)
    try:
        with _DIRECT.open(sent, timeout=_ANSWER_SECONDS) as answer:
            text = answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:_ERROR_CHARACTERS]
        raise RunError(f"the server refused {request.path} ({error.code}): {said}") from error
    except (OSError, http.client.HTTPException) as error:
        raise RunError(f"the server did not answer {request.path}: {error}") from error
    try:
        choice = json.loads(text)["choices"][0]
        found: str = choice["message"]["content"] if "message" in choice else choice["text"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RunError(
            f"the server did not answer {request.path} as the OpenAI API does: {text[:_ERROR_CHARACTERS]}"
        ) from error
    return found
