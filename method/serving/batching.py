"""Requests that wait while others are answered are answered together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(eq=False)
class _Call(Generic[Request, Response]):
    request: Request
    response: Response | None = None
    error: Exception | None = None
    is_done: bool = False


class Batching(Generic[Request, Response]):
    """Calls `answer` with the requests of all threads that wait, in the order of their arrival.

    One thread at a time answers, for itself and for those that came before its turn; no request waits for another one
    to arrive. If `answer` fails for several requests, each is answered alone, so that a request fails for itself only.

    Args:
        answer: the response to each request, in order.
        limit: requests that are answered together, at most.
    """

    def __init__(self, answer: Callable[[Sequence[Request]], Sequence[Response]], limit: int) -> None:
        self._answer, self._limit = answer, limit
        self._waiting: list[_Call[Request, Response]] = []
        self._queue, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, request: Request) -> Response:
        """The response to a request. Raises what `answer` raises for it."""
        call: _Call[Request, Response] = _Call(request)
        with self._queue:
            self._waiting.append(call)
        while not call.is_done:
            with self._turn:
                if not call.is_done:
                    self._answer_some()
        if call.error is not None:
            raise call.error
        return call.response  # type: ignore[return-value]

    def _answer_some(self) -> None:
        with self._queue:
            calls, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
        try:
            self._settle(calls)
        finally:  # an interrupted thread leaves the others' requests to them
            with self._queue:
                self._waiting = [call for call in calls if not call.is_done] + self._waiting

    def _settle(self, calls: Sequence[_Call[Request, Response]]) -> None:
        try:
            responses = self._answer([call.request for call in calls])
        except Exception as error:
            if len(calls) > 1:
                for call in calls:
                    self._settle([call])
                return
            calls[0].error, calls[0].is_done = error, True
            return
        for call, response in zip(calls, responses, strict=True):
            call.response, call.is_done = response, True
