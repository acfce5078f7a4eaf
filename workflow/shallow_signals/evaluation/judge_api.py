"""A language model as the judge (GPT-4o in AlpacaEval 2.0's way), through an OpenAI-compatible service.

Prompt, parameters and parser are those of the installed package's `weighted_alpaca_eval_gpt4_turbo`, read when the
judge is made; only the model is another. The preference is the probability of the model's identifier among both.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pandas as pd
import yaml
from alpaca_eval import completion_parsers, utils
from alpaca_eval.annotators import SinglePairwiseAnnotator

from shallow_signals.data.pairs import content_id
from shallow_signals.evaluation.alpaca_files import Record
from shallow_signals.evaluation.judge_cache import AnswerCache
from shallow_signals.evaluation.judge_client import Outcome, Patience, Question, ask_all, require_answers
from shallow_signals.evaluation.judges import CONFIG, SEED, compare
from shallow_signals.files import InputError

_SLOT = re.compile(r"{(instruction|output_1|output_2)}")


@dataclass(frozen=True)
class ApiJudge:
    """Which model judges, where it is served, and what it costs."""

    model: str  # dated, like gpt-4o-2024-08-06: an undated name changes under the results
    input_price: float  # dollars per million prompt tokens
    output_price: float  # dollars per million answer tokens
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    characters_per_token: float = 4.0  # the estimate's rule
    patience: Patience = field(default_factory=Patience)
    allow_unjudged: bool = False  # True: count what the judge would not answer; False: end with an error

    @property
    def name(self) -> str:
        """The annotator's name, formed as the package forms those of its own configurations."""
        return f"weighted_alpaca_eval_{self.model}"


@dataclass(frozen=True)
class Judged:
    """Annotations, and what they took."""

    annotations: pd.DataFrame
    unjudged: dict[str, str]  # instruction to the reason
    cached: int  # comparisons answered by the cache
    requests: int  # sent by this call, retries and malformed answers included
    cost: float  # dollars of this call, from the service's own token counts


def judge_by_api(
    reference: Sequence[Record],
    outputs: Sequence[Record],
    judge: ApiJudge,
    cache: Path,
    report: Callable[[str], None] = print,
) -> Judged:
    """Compare each output with the reference's, asking only for what `cache` lacks.

    `cache` is a JSON-lines file that outlives failed and killed runs: keep it out of what a workflow wipes. Before the
    first request `report` gets one line with the number of comparisons and the estimated cost. Raises `InputError`
    without a key in the environment, when the service refuses, and, unless `judge.allow_unjudged`, when comparisons
    stay without an answer.
    """
    with AnswerCache(cache) as answers:
        session = _Session(judge, answers, report)
        annotations = compare(reference, outputs, judge.name, session.annotator())
    return Judged(
        annotations=annotations,
        unjudged={question.instruction: session.reason(question) for question in session.unanswered},
        cached=session.cached,
        requests=session.outcome.requests,
        cost=_dollars(judge, session.outcome.prompt_tokens, session.outcome.completion_tokens),
    )


def estimate_by_api(
    reference: Sequence[Record], several: Sequence[Sequence[Record]], judge: ApiJudge, cache: Path
) -> str:
    """One line for all models of `several` together: what `cache` lacks, and about what it will cost. Asks nothing."""
    with AnswerCache(cache) as answers:
        session = _Session(judge, answers, report=lambda line: None, ask=False)
        for outputs in several:
            compare(reference, outputs, judge.name, session.annotator())
    return session.estimate()


def package_settings() -> dict[str, Any]:
    """The package's own configuration of the judge that this one derives from."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))[CONFIG.parent.name]
    return settings


class _Session:
    """One judging run: it stands between the package's annotator and the service."""

    def __init__(self, judge: ApiJudge, cache: AnswerCache, report: Callable[[str], None], ask: bool = True) -> None:
        settings = package_settings()
        parameters = dict(settings["completions_kwargs"])
        parameters.pop("model_name")
        self.request = {"model": judge.model, **parameters}
        self.parser = getattr(completion_parsers, settings["fn_completion_parser"])
        self.parser_settings = settings["completion_parser_kwargs"]
        self.template = CONFIG.parents[1] / settings["prompt_template"]
        self.judge, self.cache, self.report, self.ask = judge, cache, report, ask
        self.outcome = Outcome()
        self.cached = 0
        self.missing: dict[str, Question] = {}
        self.unanswered: list[Question] = []

    def annotator(self) -> Any:
        """The package's single annotator over this session."""
        return _ChatAnnotator(
            self,
            prompt_template=str(self.template),
            fn_completions=self.complete,
            fn_completion_parser=self.parse,
            completion_key="completions_all",
            packages_for_which_to_show_version=None,
            seed=SEED,
        )

    def complete(self, prompts: Sequence[Question]) -> dict[str, list[dict[str, Any] | None]]:
        """The package's completion function: the first choice of each answer, None where there is none."""
        missing = [question for question in prompts if self.cache.get(question.key) is None]
        self.cached += len(prompts) - len(missing)
        self.missing |= {question.key: question for question in missing}
        self.report(self.estimate())
        if not self.ask:
            return {"completions_all": [None] * len(prompts)}
        if missing:
            patience = self.judge.patience
            with _client(self.judge) as client:
                self.outcome = ask_all(
                    client, missing, self.request, self.usable, self.cache, patience, self.judge.name
                )
        self.unanswered = [question for question in missing if self.cache.get(question.key) is None]
        if self.outcome.stopped or not self.judge.allow_unjudged:
            require_answers(self.outcome, len(prompts), self.judge.name)
        answers = [self.cache.get(question.key) for question in prompts]
        return {"completions_all": [answer["choice"] if answer else None for answer in answers]}

    def parse(self, choice: dict[str, Any] | None) -> list[float]:
        """The preference among the two shown, by the package's parser; NaN without an answer."""
        return [math.nan] if choice is None else list(self.parser(choice, **self.parser_settings))

    def usable(self, choice: dict[str, Any]) -> bool:
        """Whether the package's parser makes one preference of an answer."""
        try:
            values = self.parse(choice)
        except Exception:  # the parser indexes and asserts; whatever it trips over, the answer is malformed
            return False
        return len(values) == 1 and bool(np.isfinite(values[0]))

    def questions(self, rows: pd.DataFrame) -> list[Question]:
        """One question a row. The template is split into messages before the texts go in, and all go in at once, so
        that an output holding chat markers or a slot's name stays what it is: text."""
        template = utils.prompt_to_chatml(self.template.read_text(encoding="utf-8"))
        questions = []
        for texts in rows[["instruction", "output_1", "output_2"]].to_dict("records"):
            messages = tuple(
                {"role": part["role"], "content": _SLOT.sub(lambda slot: str(texts[slot[1]]), part["content"])}  # noqa: B023
                for part in template
            )
            # The messages hold the template, the instruction and both outputs in the order shown.
            key = content_id(self.judge.name, self.request, messages)
            questions.append(Question(key, str(texts["instruction"]), messages))
        return questions

    def reason(self, question: Question) -> str:
        """Why a question has no answer."""
        return self.outcome.unanswered[question.key]

    def estimate(self) -> str:
        """One line: how many comparisons there are, how many are missing, and about what these will cost."""
        judge, missing = self.judge, self.missing.values()
        characters = sum(len(message["content"]) for question in missing for message in question.messages)
        prompt_tokens = math.ceil(characters / judge.characters_per_token)
        answer_tokens = len(missing) * int(self.request["max_tokens"])
        return (
            f"{judge.name}: {self.cached + len(missing)} comparisons, {self.cached} in the cache, {len(missing)} to "
            f"ask: about {prompt_tokens:,} prompt tokens (characters / {judge.characters_per_token:g}) and "
            f"{answer_tokens:,} answer tokens, about ${_dollars(judge, prompt_tokens, answer_tokens):.2f} "
            f"(${judge.input_price:g} and ${judge.output_price:g} per million)"
        )


class _ChatAnnotator(SinglePairwiseAnnotator):  # type: ignore[misc]
    """The package's annotator (seeded swap, parsing, swapping back) with prompts as chat messages from the start."""

    def __init__(self, session: _Session, **settings: Any) -> None:
        self._session = session
        super().__init__(**settings)

    def _make_prompts(self, df_to_annotate: pd.DataFrame, prompt_template: None = None) -> tuple[list[Question], Any]:
        return self._session.questions(df_to_annotate), df_to_annotate


def _client(judge: ApiJudge) -> openai.OpenAI:
    key = os.environ.get(judge.key_variable, "").strip()
    if not key:
        raise InputError(f"judge {judge.model}: no API key; set the environment variable {judge.key_variable}")
    # The retries are ours: the client's own know nothing of a run's bounds.
    return openai.OpenAI(api_key=key, base_url=judge.base_url, timeout=judge.patience.timeout, max_retries=0)


def _dollars(judge: ApiJudge, prompt_tokens: int, answer_tokens: int) -> float:
    return (prompt_tokens * judge.input_price + answer_tokens * judge.output_price) / 1e6
