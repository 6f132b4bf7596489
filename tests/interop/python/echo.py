"""gRPC as Google's own library for Python speaks it: an echo server, and a client that tries it.

`echo.py server` prints its port; `echo.py client PORT` prints `ok` or what is wrong. Messages are raw bytes.
"""

import queue
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "/interop.Echo/"
BIG = 3 << 20
TEXT = b"hello " * 20000


def unary(request, context):
    meta = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", "yes"),))
    if "x-bytes-bin" in meta:
        context.set_trailing_metadata((("x-bytes-bin", meta["x-bytes-bin"]),))
    if request == b"fail":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100% – ü")
    if request == b"slow":
        time.sleep(30)
    if request == b"time":
        return str(context.time_remaining()).encode()
    return request


def client_stream(requests, context):
    return str(sum(len(r) for r in requests)).encode()


cancelled = threading.Event()


def server_stream(request, context):
    if request == b"forever":
        context.add_callback(cancelled.set)
        while context.is_active():
            yield b"tick"
            time.sleep(0.01)
        return
    if request == b"cancelled":
        yield b"yes" if cancelled.wait(30) else b"no"
        return
    for n in range(int(request)):
        yield bytes(1024) if n % 2 else b"x"


def bidi(requests, context):
    for request in requests:
        yield request


def serve():
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    }
    options = [("grpc.max_receive_message_length", 64 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Echo", handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


def expect(what, condition, found):
    if not condition:
        print(f"{what}: {found!r}", flush=True)
        sys.exit(1)


def fails(what, call, code):
    try:
        found = call()
    except grpc.RpcError as error:
        expect(what, error.code() == code, (error.code(), error.details()))
        return error
    expect(what, False, found)


def client(port):
    options = [("grpc.max_receive_message_length", 64 << 20)]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
    grpc.channel_ready_future(channel).result(timeout=60)
    call = channel.unary_unary(SERVICE + "Unary")
    limit = {"timeout": 60}
    # Unary, metadata of bytes there and back, initial metadata.
    raw = bytes(range(256))
    answer, done = call.with_call(b"hello", metadata=(("x-bytes-bin", raw),), **limit)
    expect("unary", answer == b"hello", answer)
    # grpcio's server says it at the end, tonic's at the beginning.
    back = {**dict(done.trailing_metadata() or ()), **dict(done.initial_metadata())}
    expect("bytes", back.get("x-bytes-bin") == raw, back)
    expect("initial", dict(done.initial_metadata()).get("x-initial") == "yes", done.initial_metadata())
    # A status with its words, and one that comes without anything else.
    error = fails("status", lambda: call(b"fail", **limit), grpc.StatusCode.NOT_FOUND)
    expect("words", error.details() == "no such thing: 100% – ü", error.details())
    unknown = channel.unary_unary(SERVICE + "Nothing")
    fails("trailers-only", lambda: unknown(b"x", **limit), grpc.StatusCode.UNIMPLEMENTED)
    # Deadlines: the server learns of them, the client does not wait longer.
    remaining = float(call(b"time", timeout=15))
    expect("grpc-timeout", 0 < remaining < 16, remaining)
    # Both sides know the deadline, and either may be the first to say so: tonic's word for it is CANCELLED.
    began = time.monotonic()
    by_server = (grpc.StatusCode.CANCELLED, "Timeout expired")
    try:
        call(b"slow", timeout=0.5)
        expect("deadline", False, "an answer")
    except grpc.RpcError as error:
        ended = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED or (error.code(), error.details()) == by_server
        expect("deadline", ended and time.monotonic() - began < 25, (error.code(), error.details()))
    # Streams in each direction and in both.
    total = channel.stream_unary(SERVICE + "ClientStream")((bytes(1000) for _ in range(500)), **limit)
    expect("client stream", total == b"500000", total)
    received = list(channel.unary_stream(SERVICE + "ServerStream")(b"500", **limit))
    expect("server stream", sum(map(len, received)) == 250 + 250 * 1024, len(received))
    sent = [str(n).encode() * (n + 1) for n in range(200)]
    received = list(channel.stream_stream(SERVICE + "Bidi")(iter(sent), **limit))
    expect("bidi", received == sent, len(received))
    # A turn of a conversation waits for the other side's.
    turns, order = queue.SimpleQueue(), []
    talk = channel.stream_stream(SERVICE + "Bidi")(iter(turns.get, None), **limit)
    for n in range(5):
        turns.put(str(n).encode())
        order.append(next(talk))
    turns.put(None)
    expect("turns", order == [b"0", b"1", b"2", b"3", b"4"], order)
    # Messages beyond every window; compressed ones.
    big = bytes(n % 251 for n in range(BIG))
    expect("large", call(big, **limit) == big, "other bytes")
    try:
        packed = call(TEXT, compression=grpc.Compression.Gzip, **limit)
        expect("compressed", packed == TEXT, len(packed))
    except grpc.RpcError as error:
        # A peer that was built without compression says so.
        expect("compressed", "gzip" in error.details(), (error.code(), error.details()))
    # A call that is given up ends on the other side as well.
    stream = channel.unary_stream(SERVICE + "ServerStream")(b"forever", **limit)
    next(stream)
    stream.cancel()
    heard = list(channel.unary_stream(SERVICE + "ServerStream")(b"cancelled", **limit))
    expect("cancellation", heard == [b"yes"], heard)
    # A reader that does not read holds up its own call only.
    stuck = channel.stream_stream(SERVICE + "Bidi")(iter([big, big]), **limit)
    expect("flow control", call(b"through", **limit) == b"through", "nothing")
    expect("flow control, later", list(stuck) == [big, big], "other bytes")
    print("ok", flush=True)


if sys.argv[1] == "server":
    serve()
else:
    client(int(sys.argv[2]))
