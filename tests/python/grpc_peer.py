"""A gRPC server and a gRPC client by the makers of gRPC, who know nothing of the mesh.

    grpc_peer.py serve ADDRESS NAME OPTION=NUMBER...
    grpc_peer.py call TARGET AUTHORITY CASE...

The cases follow gRPC's own interoperability tests. Messages are plain bytes, so that nothing is generated.
"""

import hashlib
import os
import queue
import struct
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "starling.test.Interop"

# What a client waits for at most where it expects to wait for nothing; the test around it ends sooner.
PATIENCE = 120

# Much less than a server's sleep, and enough for the call to arrive.
DEADLINE = 1.0

ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"

# With all that has to be escaped in a `grpc-message`.
SPECIAL_MESSAGE = "\t\ntest with whitespace\r\nand 100 % Unicode: BMP ☺ and non-BMP 😈\t\n"


def pattern(size):
    """Bytes that differ from place to place, so that what is lost, doubled or moved is seen."""
    return hashlib.shake_128(b"starling").digest(size)


def ask(answer_size, size):
    """A request of `size` bytes of pattern for an answer of `answer_size`."""
    return struct.pack(">I", answer_size) + pattern(size)


class Server:
    """Every method of the service, and what the test wants to know of calls that ended."""

    def __init__(self, name):
        self.name = name
        self.ended = {}
        self.lock = threading.Lock()

    def answer(self, request, context):
        """The answer to `ask`, if it came whole."""
        (size,) = struct.unpack(">I", request[:4])
        if request[4:] != pattern(len(request) - 4):
            context.abort(grpc.StatusCode.DATA_LOSS, "other bytes than were sent")
        return pattern(size)

    def echo_metadata(self, context):
        for key, value in context.invocation_metadata():
            if key == ECHO_INITIAL:
                context.send_initial_metadata(((ECHO_INITIAL, value),))
        trailing = [(key, value) for key, value in context.invocation_metadata() if key == ECHO_TRAILING]
        context.set_trailing_metadata(tuple(trailing))

    def note_end(self, context):
        """Remembers under the call's key that this call was given up."""
        key = dict(context.invocation_metadata()).get("key")

        def ended():
            with self.lock:
                self.ended[key] = self.ended.get(key, 0) + 1

        if key is not None and not context.add_callback(ended):
            ended()

    # Unary calls.

    def empty(self, request, context):
        if request:
            context.abort(grpc.StatusCode.DATA_LOSS, "an empty message is not empty")
        return b""

    def unary(self, request, context):
        self.echo_metadata(context)
        return self.answer(request, context)

    def who(self, _request, _context):
        return self.name.encode()

    def fail(self, request, context):
        code = next(code for code in grpc.StatusCode if code.value[0] == request[0])
        self.echo_metadata(context)
        context.abort(code, request[1:].decode())

    def sleep(self, _request, context):
        self.note_end(context)
        time.sleep(5 * DEADLINE)
        return b""

    def remaining(self, _request, context):
        return repr(context.time_remaining()).encode()

    def peer(self, _request, context):
        pairs = dict(context.invocation_metadata())
        return pairs.get("x-starling-peer", "").encode()

    def was_ended(self, request, _context):
        with self.lock:
            return str(self.ended.get(request.decode(), 0)).encode()

    # Streams.

    def collect(self, requests, context):
        self.note_end(context)
        total = 0
        for request in requests:
            self.answer(request, context)
            total += len(request) - 4
        return str(total).encode()

    def produce(self, request, _context):
        for (size,) in struct.iter_unpack(">I", request):
            yield pattern(size)

    def ping_pong(self, requests, context):
        self.note_end(context)
        self.echo_metadata(context)
        for request in requests:
            yield self.answer(request, context)

    def greet_first(self, requests, _context):
        """Speaks before it has heard anything, and once more after the other has ended."""
        yield b"welcome"
        heard = b"".join(requests)
        yield b"heard " + heard

    def fail_late(self, requests, context):
        """Answers each message, and ends with a status."""
        for request in requests:
            yield self.answer(request, context)
        context.abort(grpc.StatusCode.ABORTED, SPECIAL_MESSAGE)

    def tick(self, request, _context):
        """Says something only now and then."""
        for turn in range(request[0]):
            time.sleep(0.5)
            yield bytes([turn])

    def handlers(self):
        unary, collect = grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        produce, both = grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Empty": unary(self.empty),
                "Unary": unary(self.unary),
                "Who": unary(self.who),
                "Fail": unary(self.fail),
                "Sleep": unary(self.sleep),
                "Remaining": unary(self.remaining),
                "Peer": unary(self.peer),
                "WasEnded": unary(self.was_ended),
                "Collect": collect(self.collect),
                "Produce": produce(self.produce),
                "Tick": produce(self.tick),
                "PingPong": both(self.ping_pong),
                "GreetFirst": both(self.greet_first),
                "FailLate": both(self.fail_late),
            },
        )


def serve(address, name, *more):
    # Another that already listens there is a mistake.
    options = [("grpc.so_reuseport", 0)]
    for option in more:
        key, _, number = option.partition("=")
        options.append((key, int(number)))
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=options)
    server.add_generic_rpc_handlers((Server(name).handlers(),))
    if not server.add_insecure_port(address):
        sys.exit(f"cannot listen at {address}")
    server.start()
    server.wait_for_termination()


class Client:
    """Each case is a method; it raises when something is not as it should be."""

    def __init__(self, target, authority):
        # gRPC's own variable for a proxy counts; a developer's `http_proxy` must not matter.
        options = [("grpc.enable_http_proxy", int("grpc_proxy" in os.environ))]
        if authority:
            options.append(("grpc.default_authority", authority))
        self.target, self.options = target, options
        self.channel = grpc.insecure_channel(target, options=options)

    def unary(self, method, request=b"", **more):
        return self.channel.unary_unary(f"/{SERVICE}/{method}")(request, **{"timeout": PATIENCE, **more})

    def both(self, method, requests, **more):
        call = self.channel.stream_stream(f"/{SERVICE}/{method}")
        return call(requests, **{"timeout": PATIENCE, **more})

    def eventually_ended(self, key):
        """Waits until the server has been told that the call of `key` is over."""
        until = time.monotonic() + PATIENCE
        while self.unary("WasEnded", key.encode()) == b"0":
            assert time.monotonic() < until, f"the server was never told of the end of {key}"
            time.sleep(0.05)

    # What works.

    def empty_unary(self):
        same(self.unary("Empty"), b"")

    def large_unary(self):
        same(self.unary("Unary", ask(314_159, 271_828)), pattern(314_159))

    def compressed_unary(self):
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            answer = self.unary("Unary", ask(314_159, 271_828), compression=compression)
            same(answer, pattern(314_159))

    def client_streaming(self):
        requests = (ask(0, size) for size in (27182, 8, 1828, 45904))
        answer = self.channel.stream_unary(f"/{SERVICE}/Collect")(requests, timeout=PATIENCE)
        same(answer, b"74922")

    def server_streaming(self):
        sizes = (31415, 9, 2653, 58979)
        call = self.channel.unary_stream(f"/{SERVICE}/Produce")
        answers = list(call(struct.pack(">4I", *sizes), timeout=PATIENCE))
        same(answers, [pattern(size) for size in sizes])

    def ping_pong(self):
        ours = queue.Queue()
        call = self.both("PingPong", iter(ours.get, None))
        for size, answer_size in ((27182, 31415), (8, 9), (1828, 2653), (45904, 58979)):
            # Not before the answer to the one before.
            ours.put(ask(answer_size, size))
            same(next(call), pattern(answer_size))
        ours.put(None)
        same(list(call), [])
        same(call.code(), grpc.StatusCode.OK)

    def empty_stream(self):
        call = self.both("PingPong", iter(()))
        same(list(call), [])
        same(call.code(), grpc.StatusCode.OK)

    def server_first(self):
        ours = queue.Queue()
        call = self.both("GreetFirst", iter(ours.get, None))
        same(next(call), b"welcome")
        for word in (b"one", b"two", None):
            ours.put(word)
        same(list(call), [b"heard onetwo"])

    def bulk_both_ways(self):
        size, count = 1024 * 1024, 16
        answers = self.both("PingPong", (ask(size, size) for _ in range(count)))
        received = 0
        for answer in answers:
            same(answer, pattern(size))
            received += 1
        same(received, count)

    def many_at_once(self):
        # More than the server takes side by side.
        method = self.channel.unary_unary(f"/{SERVICE}/Unary")
        calls = [method.future(ask(size, size), timeout=PATIENCE) for size in range(300)]
        for size, call in enumerate(calls):
            same(call.result(), pattern(size))

    def one_after_the_other(self):
        """Calls at once, to a server that takes few streams at a time: they wait, and none is refused."""
        method = self.channel.unary_unary(f"/{SERVICE}/Unary")
        calls = [method.future(ask(size, size), timeout=PATIENCE) for size in range(60)]
        for size, call in enumerate(calls):
            same(call.result(), pattern(size))

    def kept_alive(self):
        """A client that asks all the time whether the connection is alive gets its slow stream whole."""
        pings = [("grpc.keepalive_time_ms", 100), ("grpc.http2.max_pings_without_data", 0)]
        channel = grpc.insecure_channel(self.target, options=self.options + pings)
        answers = list(channel.unary_stream(f"/{SERVICE}/Tick")(bytes([5]), timeout=PATIENCE))
        same(answers, [bytes([turn]) for turn in range(5)])

    # What is said beside the messages.

    def custom_metadata(self):
        binary = bytes(range(256))
        metadata = ((ECHO_INITIAL, "test_initial, metadata_value"), (ECHO_TRAILING, binary))
        answer, call = self.channel.unary_unary(f"/{SERVICE}/Unary").with_call(
            ask(314_159, 271_828), metadata=metadata, timeout=PATIENCE
        )
        same(answer, pattern(314_159))
        same(values(call.initial_metadata(), ECHO_INITIAL), ["test_initial, metadata_value"])
        same(values(call.trailing_metadata(), ECHO_TRAILING), [binary])
        # In a stream, and several of one name.
        metadata += ((ECHO_TRAILING, b"\xab\xab\xab"), (ECHO_TRAILING, b"\x00"))
        call = self.both("PingPong", iter([ask(9, 8)]), metadata=metadata)
        same(values(call.initial_metadata(), ECHO_INITIAL), ["test_initial, metadata_value"])
        same(list(call), [pattern(9)])
        same(values(call.trailing_metadata(), ECHO_TRAILING), [binary, b"\xab\xab\xab", b"\x00"])

    def large_metadata(self):
        # As much as gRPC takes by default: 8 KiB with all that is in a head anyway.
        value = "v" * 6000
        metadata = ((ECHO_INITIAL, value), (ECHO_TRAILING, value.encode()))
        _, call = self.channel.unary_unary(f"/{SERVICE}/Unary").with_call(
            ask(1, 1), metadata=metadata[:1], timeout=PATIENCE
        )
        same(values(call.initial_metadata(), ECHO_INITIAL), [value])
        _, call = self.channel.unary_unary(f"/{SERVICE}/Unary").with_call(
            ask(1, 1), metadata=((ECHO_TRAILING, value[:4000].encode()),), timeout=PATIENCE
        )
        same(values(call.trailing_metadata(), ECHO_TRAILING), [value[:4000].encode()])

    def server_hears_who_calls(self):
        peer = self.unary("Peer", metadata=(("x-starling-peer", "spiffe://acme/svc/forged"),)).decode()
        assert peer.startswith("spiffe://acme/") and "forged" not in peer, peer

    def status_code_and_message(self):
        for code in grpc.StatusCode:
            if code is grpc.StatusCode.OK:
                continue
            for message in ("test status message", SPECIAL_MESSAGE, ""):
                failed = fails(lambda: self.unary("Fail", bytes([code.value[0]]) + message.encode()))
                same((failed.code(), failed.details()), (code, message))

    def status_with_metadata(self):
        metadata = ((ECHO_INITIAL, "begun"), (ECHO_TRAILING, b"\xab\xab\xab"))
        failed = fails(lambda: self.unary("Fail", b"\x05gone", metadata=metadata))
        same((failed.code(), failed.details()), (grpc.StatusCode.NOT_FOUND, "gone"))
        same(values(failed.initial_metadata(), ECHO_INITIAL), ["begun"])
        same(values(failed.trailing_metadata(), ECHO_TRAILING), [b"\xab\xab\xab"])

    def status_after_messages(self):
        call = self.both("FailLate", iter([ask(9, 8), ask(31415, 27182)]))
        same([next(call), next(call)], [pattern(9), pattern(31415)])
        failed = fails(lambda: next(call))
        same((failed.code(), failed.details()), (grpc.StatusCode.ABORTED, SPECIAL_MESSAGE))

    def unimplemented_method(self):
        failed = fails(lambda: self.unary("None"))
        same((failed.code(), failed.details()), (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))

    def unimplemented_service(self):
        call = self.channel.unary_unary("/starling.test.None/Unary")
        same(fails(lambda: call(b"", timeout=PATIENCE)).code(), grpc.StatusCode.UNIMPLEMENTED)

    # Calls that are given up.

    def deadline_exceeded(self):
        key = (("key", "deadline"),)
        began = time.monotonic()
        failed = fails(lambda: self.unary("Sleep", timeout=DEADLINE, metadata=key))
        took = time.monotonic() - began
        same(failed.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        assert DEADLINE * 0.9 < took < DEADLINE * 4, took
        self.eventually_ended("deadline")

    def deadline_of_a_stream(self):
        ours = queue.Queue()
        key = (("key", "stream"),)
        call = self.both("PingPong", iter(ours.get, None), timeout=2 * DEADLINE, metadata=key)
        ours.put(ask(9, 8))
        same(next(call), pattern(9))
        same(fails(lambda: next(call)).code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        ours.put(None)
        self.eventually_ended("stream")

    def deadline_is_told(self):
        left = float(self.unary("Remaining", timeout=60))
        # gRPC rounds up, to a tenth of a second here.
        assert 30 < left <= 60.2, left
        # Who sets none is not given one.
        none = self.channel.unary_unary(f"/{SERVICE}/Remaining")(b"").decode()
        assert none == "None" or float(none) > 1_000_000, none

    def cancel_after_begin(self):
        ours = queue.Queue()
        method = self.channel.stream_unary(f"/{SERVICE}/Collect")
        call = method.future(iter(ours.get, None), metadata=(("key", "begin"),), timeout=PATIENCE)
        # The server learns of the call and no message of it.
        time.sleep(0.5)
        call.cancel()
        ours.put(None)
        same(call.code(), grpc.StatusCode.CANCELLED)
        self.eventually_ended("begin")

    def cancel_after_first_response(self):
        ours = queue.Queue()
        call = self.both("PingPong", iter(ours.get, None), metadata=(("key", "first"),))
        ours.put(ask(31415, 27182))
        same(next(call), pattern(31415))
        call.cancel()
        same(fails(lambda: next(call)).code(), grpc.StatusCode.CANCELLED)
        ours.put(None)
        self.eventually_ended("first")
        # The channel goes on.
        same(self.unary("Empty"), b"")

    # What the mesh does.

    def both_get_half(self):
        """Of calls one after the other, where servers take turns."""
        names = [self.unary("Who") for _ in range(60)]
        counts = {name: names.count(name) for name in names}
        assert len(counts) == 2 and min(counts.values()) >= 25, counts

    def both_are_called(self):
        """Of calls at once, however servers are chosen."""
        method = self.channel.unary_unary(f"/{SERVICE}/Who")
        calls = [method.future(b"", timeout=PATIENCE) for _ in range(200)]
        names = [call.result() for call in calls]
        counts = {name: names.count(name) for name in names}
        assert len(counts) == 2 and min(counts.values()) >= 20, counts

    def fails_in_the_mesh(self):
        """Says how: the status, the mesh's flag and its words."""
        failed = fails(lambda: self.unary("Empty"))
        (flag,) = values(failed.trailing_metadata(), "x-starling-flags")
        print(failed.code().name, flag, failed.details())

    def outlives_its_server(self):
        """One channel, while the test ends the server and starts it again. Standard input says what is so."""
        for line in sys.stdin:
            if line.strip() == "works":
                until = time.monotonic() + PATIENCE
                while True:
                    try:
                        same(self.unary("Empty"), b"")
                        break
                    except grpc.RpcError as error:
                        same(error.code(), grpc.StatusCode.UNAVAILABLE)
                        assert time.monotonic() < until, error
                        time.sleep(0.05)
            else:
                same(fails(lambda: self.unary("Empty")).code(), grpc.StatusCode.UNAVAILABLE)
            print("so it is", flush=True)


    def steady(self):
        """Many calls at once, none of which may fail; for each line on standard input, a while of them."""
        count, failures, stop = [0] * 8, [], threading.Event()

        def work(number):
            while not stop.is_set():
                try:
                    if number % 2:
                        same(self.unary("Unary", ask(2653, 1828)), pattern(2653))
                    else:
                        call = self.both("PingPong", (ask(size, 31) for size in (9, 2653, 589)))
                        same([len(answer) for answer in call], [9, 2653, 589])
                except (grpc.RpcError, AssertionError) as failure:
                    failures.append(failure)
                    return
                count[number] += 1

        workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(count))]
        for worker in workers:
            worker.start()
        for _ in sys.stdin:
            before = list(count)
            while not failures and min(now - then for now, then in zip(count, before)) < 20:
                time.sleep(0.01)
            print(repr(str(failures[0])) if failures else "so it is", flush=True)
        stop.set()
        for worker in workers:
            worker.join()
        same(failures, [])


def same(one, other):
    def short(value):
        return repr(value) if len(repr(value)) < 400 else f"{type(value)} of {len(value)}"

    assert one == other, f"{short(one)} is not {short(other)}"


def values(metadata, name):
    return [value for key, value in metadata if key == name]


def fails(call):
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"it worked: {answer!r}")


def main():
    command, *arguments = sys.argv[1:]
    if command == "serve":
        serve(*arguments)
        return
    target, authority, *cases = arguments
    client = Client(target, authority)
    for case in cases:
        try:
            getattr(client, case)()
        except BaseException:
            print(f"case {case}", file=sys.stderr, flush=True)
            raise


main()
