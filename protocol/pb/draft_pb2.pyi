from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OK: _ClassVar[Status]
    STATUS_NEED_CONTEXT: _ClassVar[Status]
    STATUS_BUSY: _ClassVar[Status]
    STATUS_TOO_LONG: _ClassVar[Status]
    STATUS_NOT_YET: _ClassVar[Status]
STATUS_UNSPECIFIED: Status
STATUS_OK: Status
STATUS_NEED_CONTEXT: Status
STATUS_BUSY: Status
STATUS_TOO_LONG: Status
STATUS_NOT_YET: Status

class TargetMessage(_message.Message):
    __slots__ = ("draft", "close", "ahead")
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    draft: DraftRequest
    close: Close
    ahead: AheadRequest
    def __init__(self, draft: _Optional[_Union[DraftRequest, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., ahead: _Optional[_Union[AheadRequest, _Mapping]] = ...) -> None: ...

class PoolMessage(_message.Message):
    __slots__ = ("reply", "branches")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    reply: DraftReply
    branches: BranchReply
    def __init__(self, reply: _Optional[_Union[DraftReply, _Mapping]] = ..., branches: _Optional[_Union[BranchReply, _Mapping]] = ...) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("round_id", "depth", "rows", "deadline_ms")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    depth: int
    rows: _containers.RepeatedCompositeFieldContainer[DraftRow]
    deadline_ms: float
    def __init__(self, round_id: _Optional[int] = ..., depth: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[DraftRow, _Mapping]]] = ..., deadline_ms: _Optional[float] = ...) -> None: ...

class DraftRow(_message.Message):
    __slots__ = ("sequence_id", "start", "tokens", "length", "sampling", "depth", "stop_probability")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    STOP_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    start: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    length: int
    sampling: SamplingParams
    depth: int
    stop_probability: float
    def __init__(self, sequence_id: _Optional[int] = ..., start: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., length: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., depth: _Optional[int] = ..., stop_probability: _Optional[float] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("sequence_ids",)
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DraftReply(_message.Message):
    __slots__ = ("round_id", "blocks", "wait_ms")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    blocks: _containers.RepeatedCompositeFieldContainer[DraftBlock]
    wait_ms: float
    def __init__(self, round_id: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[DraftBlock, _Mapping]]] = ..., wait_ms: _Optional[float] = ...) -> None: ...

class DraftBlock(_message.Message):
    __slots__ = ("sequence_id", "base_length", "status", "tokens", "confidences")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    base_length: int
    status: Status
    tokens: _containers.RepeatedScalarFieldContainer[int]
    confidences: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sequence_id: _Optional[int] = ..., base_length: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., tokens: _Optional[_Iterable[int]] = ..., confidences: _Optional[_Iterable[float]] = ...) -> None: ...

class AheadRequest(_message.Message):
    __slots__ = ("round_id", "depth", "rows")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    depth: int
    rows: _containers.RepeatedCompositeFieldContainer[AheadRow]
    def __init__(self, round_id: _Optional[int] = ..., depth: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[AheadRow, _Mapping]]] = ...) -> None: ...

class AheadRow(_message.Message):
    __slots__ = ("context", "proposal", "length", "stop_probability")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    STOP_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    context: DraftRow
    proposal: _containers.RepeatedScalarFieldContainer[int]
    length: int
    stop_probability: float
    def __init__(self, context: _Optional[_Union[DraftRow, _Mapping]] = ..., proposal: _Optional[_Iterable[int]] = ..., length: _Optional[int] = ..., stop_probability: _Optional[float] = ...) -> None: ...

class BranchReply(_message.Message):
    __slots__ = ("round_id", "branches")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    round_id: int
    branches: _containers.RepeatedCompositeFieldContainer[Branch]
    def __init__(self, round_id: _Optional[int] = ..., branches: _Optional[_Iterable[_Union[Branch, _Mapping]]] = ...) -> None: ...

class Branch(_message.Message):
    __slots__ = ("sequence_id", "base_length", "key", "tokens", "confidences", "goes_on")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    base_length: int
    key: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    confidences: _containers.RepeatedScalarFieldContainer[float]
    goes_on: bool
    def __init__(self, sequence_id: _Optional[int] = ..., base_length: _Optional[int] = ..., key: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., confidences: _Optional[_Iterable[float]] = ..., goes_on: _Optional[bool] = ...) -> None: ...
