"""Asking a chat-completions service many questions: concurrently, patiently, and paying for no answer twice."""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from tqdm import tqdm  # type: ignore[import-untyped]

from shallow_signals.evaluation.judge_cache import AnswerCache
from shallow_signals.files import InputError

Usable = Callable[[dict[str, Any]], bool]  # whether an answer's first choice can be parsed

TRANSIENT = (408, 409, 429)  # besides 5xx; what they say about one request may not hold for the next try
FATAL = (401, 403, 404)  # wrong for this request and for all others
LONGEST_WAIT = 600.0  # seconds; a service that asks for more is not waited for


@dataclass(frozen=True)
class Question:
    """One request: the key of its answer, what it is about, and the chat messages."""

    key: str
    instruction: str
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Patience:
    """How hard to try."""

    concurrency: int = 8  # requests in flight
    timeout: float = 60.0  # seconds without a byte from the service
    attempts: int = 8  # tries per question at time-outs, refused connections, 429 and 5xx
    malformed_attempts: int = 3  # answers per question that can't be parsed; each is paid for
    backoff: float = 1.0  # seconds before the second try; doubles with each, with jitter
    longest_backoff: float = 60.0


@dataclass
class Outcome:
    """What a round of asking came to; the answers themselves are in the cache."""

    unanswered: dict[str, str] = field(default_factory=dict)  # question's key to the reason
    requests: int = 0  # sent, whatever came back
    prompt_tokens: int = 0  # as the service counts them, of parsed and malformed answers
    completion_tokens: int = 0
    stopped: str | None = None  # why asking ended early


class _Stop(Exception):
    """The service refuses everything; its text is fit for a person and holds no key."""


def ask_all(
    client: openai.OpenAI,
    questions: Sequence[Question],
    request: dict[str, Any],
    usable: Usable,
    cache: AnswerCache,
    patience: Patience,
    label: str,
) -> Outcome:
    """Ask every question whose key the cache lacks; `request` holds the model and the sampling parameters.

    An answer goes to the cache, durably, as soon as it is there; a kill loses at most the `concurrency` answers in
    flight. 429 (its Retry-After is honoured), 408, 409, 5xx, time-outs and connection errors are retried with
    exponential back-off and jitter; answers that `usable` refuses are asked for again. What stays unanswered is listed
    with its reason. Asking stops when as many questions in a row as may be in flight found no service, or when the
    service never gave a usable answer.
    """
    todo = list({question.key: question for question in questions if cache.get(question.key) is None}.values())
    asker = _Asker(client, request, usable, cache, patience)
    with (
        tqdm(total=len(todo), desc=label, unit="pair", disable=not todo) as bar,
        ThreadPoolExecutor(max_workers=patience.concurrency) as pool,
    ):
        futures = [pool.submit(asker.ask, question) for question in todo]
        try:
            for future in futures:
                future.result()
                bar.update()
        except BaseException:
            asker.halt.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return asker.outcome


@dataclass(frozen=True)
class _Failure:
    """Why a question has no answer, and whether the service (not this question) is at fault."""

    reason: str
    service: bool = True


class _Asker:
    """The state that the threads of one round share."""

    def __init__(
        self,
        client: openai.OpenAI,
        request: dict[str, Any],
        usable: Usable,
        cache: AnswerCache,
        patience: Patience,
    ) -> None:
        self.client, self.request, self.usable, self.cache, self.patience = client, request, usable, cache, patience
        self.outcome = Outcome()
        self.halt = threading.Event()
        self._lock = threading.Lock()
        self._failures_in_a_row = 0

    def ask(self, question: Question) -> None:
        """Try until there is an answer, or a reason why not."""
        failure = self._try(question)
        with self._lock:
            if failure is None:
                self._failures_in_a_row = 0
                return
            self.outcome.unanswered[question.key] = failure.reason
            if self.halt.is_set():
                return
            self._failures_in_a_row += 1
            # Single questions that get no usable answer are no reason to stop, unless no answer ever was usable.
            counts = failure.service or not len(self.cache)
            if counts and self._failures_in_a_row >= max(self.patience.concurrency, 3):
                self.outcome.stopped = f"{self._failures_in_a_row} in a row failed, the last: {failure.reason}"
                self.halt.set()

    def _try(self, question: Question) -> _Failure | None:
        malformed, failed, reason = 0, 0, ""
        while not self.halt.is_set():
            try:
                response = self._send(question)
            except _Stop as error:
                with self._lock:
                    self.outcome.stopped = self.outcome.stopped or str(error)
                self.halt.set()
                return _Failure(str(error))
            except openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}: {_shorten(self._clean(error.message))}"
                if error.status_code not in TRANSIENT and error.status_code < 500:
                    return _Failure(reason, service=False)
                wait = _retry_after(error)
            except openai.APITimeoutError:
                reason, wait = f"no answer within {self.patience.timeout:g} s", 0.0
            except openai.APIConnectionError as error:
                cause = self._clean(str(error.__cause__ or error))
                reason, wait = f"no connection ({_shorten(cause)})", 0.0
            else:
                choice = _first_choice(response)
                if choice is not None and self.usable(choice):
                    self._keep(question, response, choice)
                    return None
                malformed += 1
                if malformed >= self.patience.malformed_attempts:
                    reason = f"{malformed} answers that can't be parsed, the last: {_describe(choice)}"
                    return _Failure(reason, service=False)
                continue
            failed += 1
            if failed >= self.patience.attempts:
                return _Failure(f"{failed} tries, the last: {reason}")
            if wait > LONGEST_WAIT:
                return _Failure(f"{reason}; the service asks to wait {wait:.0f} s")
            self.halt.wait(max(wait, self._backoff(failed)))
        return _Failure(reason or "not asked: the service kept failing")

    def _send(self, question: Question) -> Any:
        with self._lock:
            self.outcome.requests += 1
        messages: Any = list(question.messages)
        try:
            response = self.client.chat.completions.create(messages=messages, **self.request)
        except openai.APIStatusError as error:
            if error.status_code in FATAL or error.code == "insufficient_quota":
                message = _shorten(self._clean(error.message))
                raise _Stop(f"the service refuses (HTTP {error.status_code}): {message}") from None
            raise
        except (openai.APIResponseValidationError, ValueError):
            return None  # a body that is no JSON
        usage = getattr(response, "usage", None)
        if usage is not None:
            with self._lock:
                self.outcome.prompt_tokens += usage.prompt_tokens or 0
                self.outcome.completion_tokens += usage.completion_tokens or 0
        return response

    def _keep(self, question: Question, response: ChatCompletion, choice: dict[str, Any]) -> None:
        usage = response.usage
        self.cache.add(
            question.key,
            {
                "instruction": question.instruction,
                "model": response.model,
                "choice": choice,
                "prompt_tokens": usage.prompt_tokens if usage else None,
                "completion_tokens": usage.completion_tokens if usage else None,
            },
        )

    def _backoff(self, failed: int) -> float:
        """Doubling waits, each between half and all of its length, so that threads don't come back together."""
        longest = min(self.patience.longest_backoff, self.patience.backoff * 2 ** (failed - 1))
        return float(random.uniform(0.5, 1.0) * longest)

    def _clean(self, text: str) -> str:
        """A service may echo the key in its message; it must not reach a log."""
        return text.replace(self.client.api_key, "[key]")


def require_answers(outcome: Outcome, questions: int, label: str) -> None:
    """Raise `InputError` when anything was left unanswered; what was answered stays in the cache."""
    if not outcome.unanswered:
        return
    reason = outcome.stopped or next(iter(outcome.unanswered.values()))
    raise InputError(
        f"{label}: {len(outcome.unanswered)} of {questions} comparisons not judged ({reason}); "
        "the others are kept: run again to ask for these only"
    )


def _first_choice(response: Any) -> dict[str, Any] | None:
    """The first choice as plain data; None where the answer has no such thing."""
    try:
        choice: dict[str, Any] = response.choices[0].model_dump(exclude_none=True)
    except (AttributeError, TypeError, IndexError):
        return None
    return choice


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the service asks to wait: Retry-After in seconds or as a date; 0 where it says nothing."""
    text = str(error.response.headers.get("retry-after", ""))
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _describe(choice: dict[str, Any] | None) -> str:
    if choice is None:
        return "no choices"
    content = choice.get("message", {}).get("content")
    return f"{_shorten(repr(content))}, {'with' if choice.get('logprobs') else 'without'} log-probabilities"


def _shorten(text: str) -> str:
    """One line of at most 200 characters."""
    return " ".join(text.split())[:200]
