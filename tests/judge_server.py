"""A judge on loopback: an HTTP server that speaks chat completions with log-probabilities, and misbehaves on demand.

It reads the two outputs from the prompt and prefers by their quality, by default the number after "quality=":
P(first) = sigmoid(q1 - q2).
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_OUTPUTS = re.compile(r'"output": """(.*?)"""', re.DOTALL)
_QUALITY = re.compile(r"quality=(-?[0-9.]+)")
_INSTRUCTION = re.compile(r'"instruction": """(.*?)"""', re.DOTALL)

# Instruction and number of the try (from 0) to what the server does.
Plan = Callable[[str, int], str]


def written_quality(output: str) -> float:
    """The number after "quality="."""
    return float(_QUALITY.findall(output)[0])


def always_fine(instruction: str, attempt: int) -> str:
    """A server without a bad day."""
    return "ok"


class JudgeServer:
    """Serves on a free port of 127.0.0.1 while the context is open; counts what it was asked and what it answered."""

    def __init__(
        self,
        plan: Plan = always_fine,
        latency: float = 0.0,
        first_always: float | None = None,
        quality: Callable[[str], float] = written_quality,
    ) -> None:
        self.plan, self.latency, self.first_always, self.quality = plan, latency, first_always, quality
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[tuple[float, str]] = []  # time and instruction of each request
        self.answered: Counter[str] = Counter()  # good answers sent in full, by instruction
        self.keys: set[str] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Base URL for an OpenAI client."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def register(self, body: dict[str, Any], authorization: str) -> tuple[str, int]:
        """Note a request; returns its instruction and how often it was asked before."""
        instruction = _INSTRUCTION.findall(body["messages"][-1]["content"])[0]
        with self._lock:
            attempt = sum(asked == instruction for _, asked in self.asked)
            self.asked.append((time.monotonic(), instruction))
            self.bodies.append(body)
            self.keys.add(authorization.removeprefix("Bearer "))
        return instruction, attempt

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer as the service would give it."""
        first, second = map(self.quality, _OUTPUTS.findall(body["messages"][-1]["content"]))
        share = self.first_always or 1 / (1 + math.exp(second - first))
        tops = [("m", math.log(share)), ("M", math.log(1 - share)), ("The", -15.0), ("Both", -16.0)]
        return completion_of(body["model"], tops)


def completion_of(model: str, tops: list[tuple[str, float]]) -> dict[str, Any]:
    """A chat completion of one token with these top log-probabilities."""
    top_logprobs = [{"token": token, "bytes": list(token.encode()), "logprob": value} for token, value in tops]
    best = max(top_logprobs, key=lambda top: top["logprob"])
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": best["token"]},
                "logprobs": {"content": [{**best, "top_logprobs": top_logprobs}]},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers.get("Authorization", "")
            instruction, attempt = server.register(body, key)
            time.sleep(server.latency)
            act = server.plan(instruction, attempt)
            if act == "ok":
                self.reply(200, server.completion(body))
                with server._lock:
                    server.answered[instruction] += 1
            elif act.startswith("429"):
                self.reply(429, error("slow down", "rate_limit_exceeded"), retry_after=act.removeprefix("429 "))
            elif act == "quota":
                self.reply(429, error("you exceeded your quota", "insufficient_quota"))
            elif act == "401":
                self.reply(401, error(f"Incorrect API key provided: {key.removeprefix('Bearer ')}", "invalid_api_key"))
            elif act.isdigit():
                self.reply(int(act), error("an error", "server_error"))
            elif act == "stall":
                time.sleep(2.0)
                self.close_connection = True
            elif act == "hang up":
                self.close_connection = True
            elif act == "no logprobs":
                answer = completion_of(body["model"], [("m", -0.1)])
                answer["choices"][0]["logprobs"] = None
                self.reply(200, answer)
            elif act == "other tokens":
                self.reply(200, completion_of(body["model"], [("Both", -0.1), ("The", -2.0)]))
            elif act == "no choices":
                self.reply(200, {**completion_of(body["model"], [("m", -0.1)]), "choices": []})
            elif act == "no json":
                self.reply(200, "<html>gateway</html>")
            else:
                raise AssertionError(f"unknown plan {act}")

        def reply(self, status: int, content: Any, retry_after: str | None = None) -> None:
            raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if retry_after is not None:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a client that was killed or timed out is part of the tests."""

    def error(message: str, code: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": code, "param": None, "code": code}}

    return Handler
