"""One exchange with an endpoint that speaks OpenAI's chat protocol, through the `openai` client.

    pause before try n + 1 = backoff 2^(n - 1) seconds, or what the endpoint asks for       (at most LONGEST_PAUSE)

Busy and broken endpoints (429, 5xx, no answer in time) are asked again; every failed try is written down. The key comes
from the environment, goes to the endpoint, and is taken out of whatever the endpoint sends back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep as pause
from typing import Any, Literal
from urllib.parse import urlsplit

from quaver.calib.prompts.transcript import Transcript
from quaver.runtime.errors import QuaverError, RecipeError
from quaver.runtime.lazy import need
from quaver.runtime.progress import Progress

LONGEST_ANSWER = 65_536  # characters
LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class LLMSettings:
    """The table [prompts.llm], read when prompts.generator is "llm"."""

    base_url: str = ""  # for example https://api.openai.com/v1 or http://localhost:8000/v1
    model: str = ""  # as the endpoint calls it
    key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key; empty for an endpoint that asks for none
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"  # how the endpoint is held to JSON
    temperature: float = 1.0
    per_call: int = 4  # captions asked for at once
    context: int = 20  # captions of the set that are shown, so that it says something new
    longest: int = 200  # characters of a caption
    max_tokens: int = 600  # of an answer; 0 sends no limit
    timeout: float = 60.0  # seconds for an answer
    retries: int = 6  # after a first try that failed
    backoff: float = 1.0  # seconds before the second try, doubled each time, unless the endpoint says how long
    price_in: float = 0.0  # of a million tokens sent and answered, for the estimate; 0: tokens only
    price_out: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would write a secret down or cannot be meant; raises ValueError, which a recipe reports."""
        if self.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.key_env):
            raise ValueError("key_env is the name of an environment variable, as OPENAI_API_KEY, and never the key")
        try:
            url = urlsplit(self.base_url)
        except ValueError:
            url = urlsplit("")
        if "@" in url.netloc or url.query:
            raise ValueError(
                "base_url holds a user, a password or a query: keep the key in the variable that key_env names"
            )
        if self.base_url and (url.scheme not in ("http", "https") or not url.netloc):
            raise ValueError(f"base_url {self.base_url!r} is no address: expected http://... or https://...")
        if min(self.per_call, self.longest, self.timeout) <= 0 or min(self.context, self.retries, self.backoff) < 0:
            raise ValueError("per_call, longest and timeout must be above 0; context, retries and backoff at least 0")


@dataclass(frozen=True)
class Connection:
    """An open client, the key it sends (empty for none), and the library it comes from."""

    client: Any
    key: str
    library: Any


@contextmanager
def connect(settings: LLMSettings) -> Iterator[Connection]:
    """A client of the endpoint, with the key from the environment.

    Raises: QuaverError without the extra `llm`, or without a key.
    """
    openai, key = need("openai", extra="llm"), _key(settings)
    with openai.OpenAI(
        api_key=key or "none", base_url=settings.base_url, timeout=settings.timeout, max_retries=0
    ) as client:
        yield Connection(client, key, openai)


def complete(
    connection: Connection,
    settings: LLMSettings,
    body: Mapping[str, Any],
    transcript: Transcript,
    progress: Progress,
) -> dict[str, Any]:
    """Ask the endpoint, again while it is busy or down: {answer, usage}.

    Raises: QuaverError when the endpoint stays down; RecipeError when it refuses the request.
    """
    openai, key, reason = connection.library, connection.key, ""
    for attempt in range(settings.retries + 1):
        try:
            return _outcome(connection.client.chat.completions.create(**body), key)
        except (ValueError, RecursionError, openai.APIResponseValidationError):
            return {"answer": "", "usage": {}}  # an endpoint that answers with no JSON, or in no UTF-8, said nothing
        except openai.APIError as error:
            reason = _reason(error, key)
            transcript.add(body, {"error": reason})
            if not _passing(error, openai):
                raise RecipeError(
                    f"{settings.base_url} refuses the request ({reason}): check prompts.llm.base_url, model and"
                    f" structured, and the key in {settings.key_env or 'key_env'}"
                ) from None
            if attempt < settings.retries:
                seconds = _seconds(error, settings.backoff * 2**attempt)
                progress.say(f"prompts  {settings.base_url}: {reason}; again in {seconds:.1f} s")
                pause(seconds)
    raise QuaverError(
        f"{settings.base_url} gave no answer in {settings.retries + 1} tries ({reason}): what it answered before is"
        " kept in transcript.jsonl, and the same command goes on from there"
    )


def _key(settings: LLMSettings) -> str:
    key = os.environ.get(settings.key_env, "").strip() if settings.key_env else ""
    if settings.key_env and not key:
        raise QuaverError(
            f"no API key: the environment variable {settings.key_env} is not set; export {settings.key_env}=..., or set"
            ' prompts.llm.key_env="" for an endpoint that asks for none'
        )
    if not key.isascii() or not key.isprintable():
        raise QuaverError(
            f"the environment variable {settings.key_env} holds characters that no API key has: export it again, the"
            " key alone on one line"
        )
    return key


def _outcome(reply: Any, key: str) -> dict[str, Any]:
    """{answer, usage} of a completion; the answer is empty when it holds none."""
    choices = getattr(reply, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    answer = getattr(getattr(first, "message", None), "content", None)
    usage = getattr(reply, "usage", None)
    counts = {name: getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens")}
    return {
        "answer": _clean(answer if isinstance(answer, str) else "", key),
        "usage": {name: count for name, count in counts.items() if isinstance(count, int)},
    }


def _clean(text: str, key: str) -> str:
    """A text from outside: cut, without the key, and such that UTF-8 can hold it."""
    text = text.replace(key, "***") if key else text
    return text[:LONGEST_ANSWER].encode("utf-8", "replace").decode()


def _reason(error: Any, key: str) -> str:
    status = getattr(error, "status_code", None)
    text = _clean(" ".join(str(error).split()), key)
    return "".join(letter for letter in (f"HTTP {status}: {text}" if status else text) if letter.isprintable())[:200]


def _passing(error: Any, openai: Any) -> bool:
    """Whether asking again may help: no connection, no answer in time, 408, 409, 429, 5xx."""
    status = getattr(error, "status_code", 0)
    return isinstance(error, openai.APIConnectionError) or status in (408, 409, 429) or status >= 500


def _seconds(error: Any, planned: float) -> float:
    """Seconds to wait: what the endpoint asks for, else what was planned, within reason."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        asked = float(headers.get("retry-after", ""))
    except ValueError:
        asked = planned
    return min(max(asked, 0.0), LONGEST_PAUSE) if asked == asked else planned
