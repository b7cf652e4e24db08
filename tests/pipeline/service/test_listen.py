"""The socket that HTTP is served on."""

from __future__ import annotations

import asyncio
import socket

from pipeline.service.web import listen


def test_answers_are_sent_at_once():
    """Connections taken from it have Nagle's algorithm off: else every second answer comes 40 ms late."""

    async def accepted() -> int:
        taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found = writer.get_extra_info("socket")
            taken.set_result(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen("127.0.0.1", 0)
        server = await asyncio.start_server(connected, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            try:
                return await asyncio.wait_for(taken, 10)
            finally:
                writer.close()

    assert asyncio.run(accepted())
