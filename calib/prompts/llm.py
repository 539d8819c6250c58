"""Captions by a language model: any endpoint that speaks OpenAI's chat protocol, through the `openai` client.

    request(targets, captions of S) -> {"captions": [text, ...]} -> each checked -> one a call of the generator

An answer is data from outside: it is cut at a length, must be JSON of that form, and of its captions those are kept
that have 1 to `longest` characters of plain text. What is left out counts as a failed call, and the loop asks on.
"""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from quaver.calib.prompts.aspects import Aspect
from quaver.calib.prompts.endpoint import Connection, LLMSettings, complete, connect
from quaver.calib.prompts.grammar import Generate
from quaver.calib.prompts.transcript import Transcript, open_transcript
from quaver.runtime.errors import RecipeError
from quaver.runtime.progress import Progress

SYSTEM = (
    "You write captions for a text-to-audio model. A caption is one plain English sentence of 3 to 25 words that says"
    ' what is heard and how it sounds. Answer with JSON alone, of the form {"captions": ["...", "..."]}.'
)
SCHEMA = {
    "type": "object",
    "properties": {"captions": {"type": "array", "items": {"type": "string"}}},
    "required": ["captions"],
    "additionalProperties": False,
}
FORMATS: Mapping[str, dict[str, Any]] = {
    "json_schema": {"type": "json_schema", "json_schema": {"name": "captions", "strict": True, "schema": SCHEMA}},
    "json_object": {"type": "json_object"},
}


@contextmanager
def open_llm(settings: LLMSettings, path: Path, *, progress: Progress) -> Iterator[Generate]:
    """A generator over an endpoint, whose exchanges are kept in the transcript at `path` and replayed from it.

    Raises: RecipeError when endpoint or model is not named; ArtifactError for a damaged transcript. Its calls raise
    QuaverError without a key, or when the endpoint refuses or stays down: what was answered stays in the transcript.
    """
    if not settings.base_url or not settings.model:
        raise RecipeError(
            'prompts.generator is "llm", and prompts.llm.base_url or model is empty: name both, for example'
            ' --set prompts.llm.base_url="http://localhost:8000/v1" --set prompts.llm.model="NAME"'
        )
    with open_transcript(path) as transcript, ExitStack() as held:
        ready: dict[tuple[str, ...], deque[str]] = defaultdict(deque)

        @cache
        def connection() -> Connection:  # opened by the first request that is not replayed
            return held.enter_context(connect(settings))

        def generate(targets: Sequence[Aspect], context: Sequence[str], rng: np.random.Generator) -> str:
            queue = ready[tuple(aspect.name for aspect in targets)]
            if not queue:
                shown = rng.permutation(len(context))[: settings.context]
                body = request(settings, targets, [context[i] for i in sorted(shown)])
                answer = transcript.ask(body, lambda: complete(connection(), settings, body, transcript, progress))
                queue.extend(captions_of(answer, settings.longest)[: settings.per_call] or [""])
            return queue.popleft()

        try:
            yield generate
        finally:
            progress.say(_used(transcript))


def request(settings: LLMSettings, targets: Sequence[Aspect], context: Sequence[str]) -> dict[str, Any]:
    """The body of a request for captions that cover the targets together, and unlike those in the context."""
    wanted = "\n".join(f"- {aspect.name}, for example: {'; '.join(examples(aspect))}" for aspect in targets)
    known = "\n".join(f"- {text}" for text in context)
    user = f"Write {settings.per_call} different captions. Each must clearly speak of:\n{wanted}\n"
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": user + (f"Say something else than these:\n{known}\n" if known else "")},
        ],
        "temperature": settings.temperature,
    }
    body |= {"max_tokens": settings.max_tokens} if settings.max_tokens else {}
    return body | ({"response_format": FORMATS[settings.structured]} if settings.structured in FORMATS else {})


def examples(aspect: Aspect) -> tuple[str, ...]:
    """A few words or phrases that speak of an aspect."""
    return (aspect.phrases or tuple(word.rstrip("*") for word in aspect.words))[:5]


def captions_of(answer: str, longest: int) -> list[str]:
    """The captions of an answer that can be used; none when it is not of the form asked for."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return []
    items = found.get("captions") if isinstance(found, dict) else None
    texts = [item.strip() for item in items if isinstance(item, str)] if isinstance(items, list) else []
    return [text for text in texts if usable(text, longest)]


def usable(text: str, longest: int) -> bool:
    """Whether a text is a caption: 1 to `longest` characters, letters among them, no control character, no markup."""
    if not 0 < len(text) <= longest or not any(letter.isalpha() for letter in text):
        return False
    return all(unicodedata.category(letter)[0] in "LMN" or letter in " .,;:!?'\"()/&%+#°-–—‘’“”…" for letter in text)


def estimate(settings: LLMSettings, aspects: Sequence[Aspect], base: Sequence[str], wanted: int, i_max: int) -> str:
    """What `wanted` captions will cost, in a line; a token is taken as four characters."""
    mean = sum(map(len, base)) / max(len(base), 1)
    body = request(settings, aspects[:1], ["x" * ceil(mean)] * min(settings.context, len(base)))
    sent = sum(len(message["content"]) for message in body["messages"]) // 4
    answered = settings.per_call * (ceil(mean) // 4 + 6)
    calls, most = ceil(wanted / settings.per_call), ceil(i_max / settings.per_call)
    cost = (sent * settings.price_in + answered * settings.price_out) / 1e6
    price = f", {calls * cost:.2f} at the prices of the recipe (at most {i_max * cost:.2f})" if cost else ""
    return (
        f"prompts  {settings.model} at {settings.base_url}: about {calls} requests, {calls * sent:,} tokens sent and"
        f" {calls * answered:,} answered{price}; i_max allows {most} to {i_max} requests"
    )


def _used(transcript: Transcript) -> str:
    answers = [row for row in transcript.rows if "answer" in row]
    sent, answered = (
        sum(int(row.get("usage", {}).get(name, 0)) for row in answers)
        for name in ("prompt_tokens", "completion_tokens")
    )
    return f"prompts  transcript: {len(answers)} answers, {sent:,} tokens sent and {answered:,} answered"
