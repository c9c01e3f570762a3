"""A WebSocket server and a client of Python's `websockets`, who know nothing of the mesh.

    websocket_peer.py serve HOST PORT
    websocket_peer.py call HOST PORT AUTHORITY CASE...
"""

import asyncio
import hashlib
import http
import json
import logging
import sys

import websockets
from websockets.extensions import permessage_deflate

# What is waited for at most where nothing is to be waited for; the test around it ends sooner.
PATIENCE = 120

LARGE = 8 * 1024 * 1024

REASON = "enough: schön ☺"


def pattern(size):
    """Bytes that differ from place to place, and cannot be compressed."""
    return hashlib.shake_128(b"starling").digest(size)


class Server:
    """What a socket does is asked for by its path."""

    def __init__(self):
        # How the socket that was opened with a key ended.
        self.ends = {}

    async def serve(self, host, port):
        options = {"max_size": None, "ping_interval": None, "subprotocols": ["chat.v2", "chat.v1"]}
        async with websockets.serve(
            self.handle, host, int(port), process_request=self.before, compression="deflate", **options
        ):
            await asyncio.Future()

    async def before(self, path, _headers):
        if path == "/refused":
            return http.HTTPStatus.UNAUTHORIZED, [("www-authenticate", "none"), ("x-mine", "yes")], b"not you"
        return None

    async def handle(self, socket, path):
        kind, _, key = path.strip("/").partition("/")
        try:
            await getattr(self, kind)(socket, key)
        except websockets.ConnectionClosed:
            pass
        if kind == "echo" and key:
            await socket.wait_closed()
            self.ends[key] = (socket.close_code, socket.close_reason)

    async def echo(self, socket, _key):
        async for message in socket:
            await socket.send(message)

    async def end_of(self, socket, key):
        """How the socket of that key ended, once it has."""
        while key not in self.ends:
            await asyncio.sleep(0.02)
        await socket.send(json.dumps(self.ends[key]))

    async def greet(self, socket, _key):
        await socket.send("welcome")
        await socket.send(pattern(100_000))
        await self.echo(socket, _key)

    async def close(self, socket, code):
        await socket.close(int(code), REASON)

    async def abort(self, socket, _key):
        """Ends as a program does that is killed."""
        await socket.send("still here")
        await socket.recv()
        socket.transport.abort()

    async def fragments(self, socket, _key):
        """Sends all it has heard back, each message as a fragment."""
        parts = [await socket.recv() for _ in range(3)]
        await socket.send(parts)

    async def ping(self, socket, _key):
        """Waits for the answer to a ping of its own."""
        pong = await socket.ping(b"are you there")
        await pong
        await socket.send("you are")

    async def about(self, socket, _key):
        """What was agreed, as this side knows it."""
        extensions = [repr(extension) for extension in socket.extensions]
        headers = socket.request_headers
        await socket.send(json.dumps([socket.subprotocol, extensions, headers.get("x-starling-peer", "")]))
        await self.echo(socket, _key)


class Client:
    """Each case is a method; it raises when something is not as it should be."""

    def __init__(self, host, port, authority):
        self.host, self.port, self.authority = host, int(port), authority

    def open(self, path, **options):
        uri = f"ws://{self.authority or f'{self.host}:{self.port}'}/{path}"
        options = {"max_size": None, "ping_interval": None, "open_timeout": PATIENCE, **options}
        return websockets.connect(uri, host=self.host, port=self.port, **options)

    async def end_of(self, key):
        async with self.open(f"end_of/{key}") as socket:
            return json.loads(await socket.recv())

    async def text_and_binary(self):
        for compression in (None, "deflate"):
            async with self.open("echo", compression=compression) as socket:
                short = ("hello", "schön ☺ 😈", "", b"", bytes(range(256)))
                for message in (*short, pattern(70_000), "x" * 65_536):
                    await socket.send(message)
                    same(await socket.recv(), message)

    async def large_messages(self):
        for compression in (None, "deflate"):
            async with self.open("echo", compression=compression) as socket:
                for message in (pattern(LARGE), "starling " * (LARGE // 9)):
                    sending = asyncio.ensure_future(socket.send(message))
                    same(await socket.recv(), message)
                    await sending

    async def many_messages(self):
        """Sent without waiting for an answer, and answered in order."""
        async with self.open("echo") as socket:

            async def send():
                for number in range(5000):
                    await socket.send(f"message {number}")

            sending = asyncio.ensure_future(send())
            for number in range(5000):
                same(await socket.recv(), f"message {number}")
            await sending

    async def many_sockets(self):
        async def one(number):
            async with self.open("echo") as socket:
                for turn in range(5):
                    await socket.send(f"{number} {turn}")
                    same(await socket.recv(), f"{number} {turn}")

        await asyncio.gather(*(one(number) for number in range(100)))

    async def fragments(self):
        for parts in (["one ", "", "three"], [b"\x00", pattern(100_000), b"\xff"]):
            whole = parts[0][:0].join(parts)
            async with self.open("echo") as socket:
                # A ping may come between the fragments of a message.
                async def slowly():
                    for part in parts:
                        yield part
                        await (await socket.ping())

                await socket.send(slowly())
                same(await socket.recv(), whole)
            async with self.open("fragments") as socket:
                for part in parts:
                    await socket.send(part)
                same(await socket.recv(), whole)

    async def pings(self):
        async with self.open("echo") as socket:
            for data in (b"", b"are you there", bytes(range(125))):
                await (await socket.ping(data))
        async with self.open("ping") as socket:
            same(await socket.recv(), "you are")
        # Both ends of an idle socket hear each other.
        async with self.open("echo", ping_interval=0.1, ping_timeout=PATIENCE) as socket:
            await asyncio.sleep(2)
            await socket.send("still here")
            same(await socket.recv(), "still here")

    async def close_of_the_client(self):
        for code, key in ((1000, "normal"), (1001, "away"), (3000, "registered"), (4999, "own")):
            async with self.open(f"echo/{key}") as socket:
                await socket.close(code, REASON)
                same((socket.close_code, socket.close_reason), (code, REASON))
            same(await self.end_of(key), [code, REASON])

    async def close_of_the_server(self):
        for code in (1000, 1001, 1011, 1013, 3000, 4999):
            async with self.open(f"close/{code}") as socket:
                closed = await fails(socket.recv(), websockets.ConnectionClosed)
                same((closed.rcvd.code, closed.rcvd.reason), (code, REASON))
                same((socket.close_code, socket.close_reason), (code, REASON))

    async def an_abort_is_no_close(self):
        async with self.open("abort") as socket:
            same(await socket.recv(), "still here")
            await socket.send("go")
            closed = await fails(socket.recv(), websockets.ConnectionClosedError)
            same((closed.rcvd, socket.close_code), (None, 1006))
        socket = await self.open("echo/aborted")
        await socket.send("hello")
        same(await socket.recv(), "hello")
        socket.transport.abort()
        same(await self.end_of("aborted"), [1006, ""])

    async def server_first(self):
        for _ in range(20):
            async with self.open("greet") as socket:
                same(await socket.recv(), "welcome")
                same(await socket.recv(), pattern(100_000))
                await socket.send("thanks")
                same(await socket.recv(), "thanks")

    async def negotiation(self):
        async with self.open("about", subprotocols=["chat.v1", "chat.v0"], compression=None) as socket:
            subprotocol, extensions, peer = json.loads(await socket.recv())
            same((subprotocol, socket.subprotocol), ("chat.v1", "chat.v1"))
            same((extensions, socket.extensions), ([], []))
            assert peer.startswith("spiffe://"), peer

    async def deflate(self):
        for offer in (
            {},
            {"server_max_window_bits": 10, "client_max_window_bits": 11},
            {"server_no_context_takeover": True, "client_no_context_takeover": True},
        ):
            offer = {"client_max_window_bits": True, **offer}
            factory = permessage_deflate.ClientPerMessageDeflateFactory(**offer)
            async with self.open("about", extensions=[factory], compression=None) as socket:
                _, theirs, _ = json.loads(await socket.recv())
                (ours,) = socket.extensions
                # What is remote to one is local to the other.
                mirrored = permessage_deflate.PerMessageDeflate(
                    ours.local_no_context_takeover,
                    ours.remote_no_context_takeover,
                    ours.local_max_window_bits,
                    ours.remote_max_window_bits,
                )
                same(theirs, [repr(mirrored)])
                assert ours.remote_max_window_bits <= offer.get("server_max_window_bits", 15), ours
                if offer["client_max_window_bits"] is not True:
                    assert ours.local_max_window_bits <= offer["client_max_window_bits"], ours
                same(ours.remote_no_context_takeover, "server_no_context_takeover" in offer)
                # The second message leans on the first where context is kept.
                for message in ("starling " * 50_000, "starling " * 50_000, pattern(100_000), ""):
                    await socket.send(message)
                    same(await socket.recv(), message)

    async def refused_by_the_server(self):
        refused = await fails(self.open("refused"), websockets.InvalidStatusCode)
        same((refused.status_code, refused.headers.get("x-mine")), (401, "yes"))
        same(refused.headers.get("x-starling-flags"), None)

    async def refused_by_the_mesh(self):
        refused = await fails(self.open("echo"), websockets.InvalidStatusCode)
        print(refused.status_code, refused.headers.get("x-starling-flags"))


def same(one, other):
    def short(value):
        return repr(value) if len(repr(value)) < 400 else f"{type(value)} of {len(value)}"

    assert one == other, f"{short(one)} is not {short(other)}"


async def fails(awaited, error):
    try:
        answer = await awaited
    except error as expected:
        return expected
    raise AssertionError(f"it worked: {answer!r}")


def main():
    # Whoever only looks whether the port is open is no fault.
    logging.basicConfig(level=logging.CRITICAL)
    command, host, port, *arguments = sys.argv[1:]
    if command == "serve":
        asyncio.run(Server().serve(host, port))
        return
    authority, *cases = arguments
    for case in cases:
        try:
            asyncio.run(asyncio.wait_for(getattr(Client(host, port, authority), case)(), PATIENCE))
        except BaseException:
            print(f"case {case}", file=sys.stderr, flush=True)
            raise


main()
