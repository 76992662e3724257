"""One open stream from a target replica to a draft replica. Lives on an event loop; `send` is for any thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from deployments.discovery import PoolMember
from protocol.wire import METHOD, SERVICE, PoolMessage, TargetMessage, decode_pool, encode_target

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
MAX_OUTBOUND = 256

# A dead machine sends no reset: pings find it, and the draft deadline covers the seconds until then.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)

OnReply = Callable[["Link", PoolMessage], None]
OnEnd = Callable[["Link"], None]


class Link:
    """on_reply and on_end are called on the loop; on_end once, also after `close`."""

    def __init__(self, member: PoolMember, on_reply: OnReply, on_end: OnEnd) -> None:
        self.member = member
        self.open = False
        self._on_reply = on_reply
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[TargetMessage] = asyncio.Queue(MAX_OUTBOUND)
        self._channel = grpc.aio.insecure_channel(member.address, options=CHANNEL_OPTIONS)
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> bool:
        """False when the replica does not answer."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._channel.channel_ready()
            self.open = True
        except TimeoutError:
            return False
        finally:
            if not self.open:
                await self._channel.close()
        self._task = asyncio.create_task(self._run())
        return True

    def send(self, message: TargetMessage) -> None:
        """What does not fit is dropped: the pool is not reading, and an old request is worth nothing."""
        if self.open:
            self._loop.call_soon_threadsafe(self._put, message)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    def _put(self, message: TargetMessage) -> None:
        if not self._outbox.full():
            self._outbox.put_nowait(message)

    async def _run(self) -> None:
        open_stream = self._channel.stream_stream(
            f"/{SERVICE}/{METHOD}", request_serializer=encode_target, response_deserializer=decode_pool
        )
        call: Any = open_stream(wait_for_ready=False)
        writer = asyncio.create_task(self._write(call))
        try:
            while (reply := await call.read()) is not grpc.aio.EOF:
                self._on_reply(self, reply)
        except grpc.aio.AioRpcError as error:
            logger.info("stream to draft replica %s ended: %s", self.member.incarnation, error.code().name)
        except Exception:
            logger.exception("reading from draft replica %s failed", self.member.incarnation)
        finally:
            self.open = False
            writer.cancel()
            call.cancel()
            self._on_end(self)

    async def _write(self, call: Any) -> None:
        """However it ends, the call ends with it: a link that cannot send must not look open."""
        try:
            while True:
                await call.write(await self._outbox.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reading side reports the end
        except Exception:
            logger.exception("writing to draft replica %s failed", self.member.incarnation)
        finally:
            call.cancel()
