"""The driver's side of one rollout engine.

Invariant: while anything is in flight, the driver waits for answers of the engine, and notices the death of any process
of the run. A failure is told once; then all requests in flight are sent again or fail. Time during which nothing is in
flight does not count towards the deadline.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import torch

from pentad.cluster.engine_actor import Answer, Ticket
from pentad.cluster.failure import first_cause
from pentad.cluster.gang import Gang
from pentad.cluster.generating import Generating
from pentad.cluster.processes import Call
from pentad.engines.protocol import EngineFailedError
from pentad.errors import UserError
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest

_PHASE = "rollout"


@dataclass(eq=False)
class Order:
    """A request, the answer that somebody waits for, and the engine that it has gone to."""

    request: GenerateRequest
    answer: asyncio.Future[Completion]
    replica: Optional["Replica"] = None
    ticket: Ticket = -1

    @property
    def load(self) -> int:
        """Tokens that it may take."""
        return len(self.request.prompt_tokens) + self.request.params.max_tokens


class Replica:
    """One engine.

    Args:
        gang: the engines.
        rank: of this one.
        deadline_s: longest time without an answer while something is in flight, in seconds.
        on_failure: is told that the engine, or another process, failed; then calls `send_again`, `listen` or `fail`.
        count_replaced: how many engines of the run were replaced so far.

    Attributes:
        failed: between a failure and what is done about it nothing is sent.
        load: tokens that the requests in flight may take.
        generation: how often the engine had been replaced when requests were sent to it.
        generating: when it does, for the timeline.
        replaced_before: how many engines of the run had been replaced when it was last waited for.
    """

    def __init__(
        self,
        gang: Gang,
        rank: int,
        deadline_s: float,
        on_failure: Callable[["Replica", Exception], None],
        count_replaced: Callable[[], int],
    ) -> None:
        self._gang, self.rank = gang, rank
        self._deadline_s, self._on_failure = deadline_s, on_failure
        self.failed = False
        self._count_replaced = count_replaced
        self.generation = 0
        self.replaced_before = 0
        self._tickets = itertools.count()
        self._new: list[Order] = []
        self._in_flight: dict[Ticket, Order] = {}
        self._cancelled: list[Ticket] = []
        self._submissions: set[asyncio.Task[None]] = set()
        self._collection: asyncio.Task[None] | None = None
        # The engine is asked once at a time: of two that ask, one would take the other's answers.
        self._asked: Call | None = None
        self.load = 0
        self.generating = Generating(gang.timeline, gang.names[rank])

    def take(self, order: Order) -> None:
        """Accept an order, for the next `send`."""
        order.replica, order.ticket = self, next(self._tickets)
        self.load += order.load
        self._in_flight[order.ticket] = order
        self._new.append(order)
        self._note()

    def send(self) -> None:
        """Send what was taken."""
        if not self._new or self.failed:
            return
        new, self._new = self._new, []
        requests = [(order.ticket, order.request) for order in new]
        submission = asyncio.create_task(self._submit(requests))
        self._submissions.add(submission)
        submission.add_done_callback(self._submissions.discard)
        if self._collection is None or self._collection.done():
            self._collection = asyncio.create_task(self._collect())

    def settle(self, order: Order) -> None:
        """Forget an order that is answered, or that nobody waits for any more."""
        self.load -= order.load
        if self._in_flight.pop(order.ticket, None) is not None:
            if not self._cancelled:
                asyncio.get_running_loop().call_soon(self._cancel)
            self._cancelled.append(order.ticket)
            if not self._in_flight and self._collection is not None:
                # What is sent from now on has a deadline of its own, with the question that is asked already.
                self._collection.cancel()
                self._collection = None
            self._note()

    def _note(self) -> None:
        """Take down whether the engine works on something."""
        self.generating.want(bool(self._in_flight) and not self.failed)

    @property
    def in_flight(self) -> int:
        """Requests that are not answered."""
        return len(self._in_flight)

    def send_again(self, generation: int) -> None:
        """Send what is in flight to the engine that has taken the place of the one that failed."""
        self.generation = generation
        self.failed, self._asked, self._cancelled = False, None, []
        self._note()
        self._new = list(self._in_flight.values())
        self.send()

    def listen(self) -> None:
        """Wait for answers again: the engine was late for a reason."""
        self.failed = False
        self._note()
        if self._in_flight and (self._collection is None or self._collection.done()):
            self._collection = asyncio.create_task(self._collect())
        self.send()

    def fail(self, error: Exception | None) -> None:
        """Give up: every request in flight gets the error.

        Args:
            error: None: it is aborted, so that whoever asked asks again; nothing is sent until `send_again`.
        """
        self.failed, self._asked, self._new = error is None, None, []
        nothing = torch.zeros(0)
        for ticket in list(self._in_flight):
            self._answer(ticket, error or Completion(nothing.long(), nothing, nothing.int(), "abort"))

    def _cancel(self) -> None:
        tickets, self._cancelled = self._cancelled, []
        if self.failed or not tickets:
            return
        self._gang.actors[self.rank].cancel.remote(tickets)

    async def _submit(self, requests: Sequence[tuple[Ticket, GenerateRequest]]) -> None:
        try:
            await self._gang.call_rank(self.rank, "submit", requests, phase=_PHASE)
        except Exception as error:
            self.lose(error)

    async def _collect(self) -> None:
        try:
            while self._in_flight:
                self.replaced_before = self._count_replaced()
                if self._asked is None:
                    collect = self._gang.actors[self.rank].collect.remote()
                    self._asked = Call((collect,), (self._gang.names[self.rank],))
                (answers,) = await self._gang.finish(
                    self._asked, _PHASE, deadline_s=self._deadline_s, setting="rollout.deadline_s"
                )
                self._asked = None
                for ticket, answer in answers:
                    if isinstance(answer, EngineFailedError):
                        raise self._named(answer)
                    self._answer(ticket, answer if isinstance(answer, Completion) else self._named(answer))
        except Exception as error:
            self.lose(error)

    def lose(self, error: Exception) -> None:
        """The engine was lost; nothing is sent until it is known what is done about it."""
        if not self.failed:
            self.failed = True
            self._note()
            self._on_failure(self, error)

    def _named(self, error: Exception) -> Exception:
        """What is raised for a request that the engine could not complete."""
        if isinstance(error, UserError):
            return error
        return first_cause({self._gang.names[self.rank]: error}, _PHASE, {})

    def _answer(self, ticket: Ticket, answer: Answer) -> None:
        order = self._in_flight.pop(ticket, None)
        self._note()
        if order is None or order.answer.done():  # cancelled meanwhile
            return
        if isinstance(answer, Completion):
            order.answer.set_result(answer)
        else:
            order.answer.set_exception(answer)
