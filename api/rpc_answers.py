"""What gRPC tells of an answer: its deltas as messages, with the calls of functions in them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from api.call_replies import TOOL_CALLS, content_and_calls, finish_reason
from api.calls import Calling
from api.generation import Delta
from api.jobs import GenerationJob
from api.replies import Json
from api.scores import Score, ScoredToken
from protocol.pb import inference_pb2 as pb
from protocol.request import FinishReason

_REASONS: Mapping[str, pb.FinishReason] = MappingProxyType(
    {
        FinishReason.STOP: pb.FINISH_REASON_STOP,
        FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
        TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    }
)


class Answer:
    """One choice of a call that is under way. how: None where nothing in it is read as a call of a function."""

    def __init__(self, call_id: str, choice: int, job: GenerationJob, how: Calling | None = None) -> None:
        self.job = job
        self._call_id, self._choice = call_id, choice
        self._reader = how.reader() if how else None

    def response(self, delta: Delta) -> pb.GenerateResponse:
        """The deltas come in order."""
        text, calls, reason = self._said(delta)
        response = pb.GenerateResponse(
            request_id=self._call_id, choice=self._choice, index=delta.index, token_ids=delta.token_ids, text=text
        )
        response.tool_calls.extend(map(_call, calls))
        response.logprobs.extend(map(_logprobs, delta.scores))
        behind = (score for score in delta.of_prompt if score.chosen.logprob is not None)
        response.prompt_logprobs.extend(map(_logprobs, behind))
        response.token_sources.extend(delta.sources)
        if reason is not None:
            response.finish_reason = _REASONS[reason]
            response.seed = self.job.request.sampling.seed
            response.usage.prompt_tokens = len(self.job.request.prompt_ids)
            response.usage.completion_tokens = delta.num_tokens
            response.usage.cached_tokens = delta.num_cached
        if (stats := delta.stats) is not None:
            counts = pb.SpeculationStats(rounds=stats.rounds, drafted=stats.drafted, accepted=stats.accepted)
            response.stats.CopyFrom(counts)
        return response

    def _said(self, delta: Delta) -> tuple[str, list[Json], str | None]:
        """The words, the parts of calls, and the finish reason to tell."""
        if self._reader is None:
            return delta.text, [], delta.finish_reason
        said = self._reader.push(delta.text, last=delta.finish_reason is not None)
        return *content_and_calls(said), finish_reason(self._reader, delta.finish_reason)


def _call(part: Json) -> pb.ToolCallDelta:
    function = part["function"]
    return pb.ToolCallDelta(
        index=part["index"], id=part.get("id"), name=function.get("name"), arguments=function["arguments"]
    )


def _logprobs(score: Score) -> pb.Logprobs:
    return pb.Logprobs(chosen=_token(score.chosen), top=map(_token, score.top))


def _token(token: ScoredToken) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, logprob=token.logprob, spelling=token.spelling)
