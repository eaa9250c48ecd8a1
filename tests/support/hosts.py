"""A server on this machine that does what servers do: it stalls, hangs up, lies and sends something else."""

import contextlib
import hashlib
import http.server
import threading

import numpy as np
import pytest

from minifcn.files.download import Source

BYTES = np.random.default_rng(0).bytes(700_001)             # more than two blocks, and a remainder
STALL = 0.3                                                 # seconds; the first timeout where a host sends too little
BUSY = 60                                                   # the timeout of the others, also on a machine that is busy


REDIRECTS = {"bracket": "http://[bad/file", "port": "http://127.0.0.1:port/", "empty": "http://a..b/", "nul": "http://a\x01b/",
             "ftp": "ftp://127.0.0.1/file", "own file": "file:///etc/passwd", "loop": "/loop"}
DRIPS = {                                                   # a beginning, and what comes again and again
    "hundreds": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "drip": (b"HTTP/1.1 200 OK\r\nContent-Length: 700001\r\n\r\n", BYTES[:1]),
    "chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0")}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.content; /a/b/c is answered with fault a the first time, then b, and c from then on."""

    def do_GET(self):
        with contextlib.suppress(ConnectionError):          # who has been told a wrong length hangs up
            self.answer()

    def answer(self):
        server = self.server
        faults = self.path.strip("/").split("/")
        count = server.count[self.path] = server.count.get(self.path, 0) + 1
        fault = faults[min(count, len(faults)) - 1]
        server.requests.append((fault, self.headers["Range"]))
        content, start = server.content, 0
        if fault in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[fault])
            return self.end_headers()
        if fault in DRIPS:
            self.wfile.write(DRIPS[fault][0])
            while not server.over.wait(STALL / 10):         # until the other side hangs up
                self.wfile.write(DRIPS[fault][1])
        if fault == "escape":
            return self.wfile.write(b"HTTP/1.0 404 \x1b[2J\x07gone" + b"!" * 1000 + b"\r\n\r\n")
        if fault.isdigit():
            return self.send_error(int(fault))
        if fault == "wrong":
            content = bytes(len(content) - 1) + b"!"
        if fault == "other":
            content = b"<html>not found, but with status 200</html>"
        if self.headers["Range"] and fault not in ("unranged", "unranged-cut"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + (fault == 'shifted')}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        length = len(content) - start
        if fault not in ("unsized", "endless"):
            self.send_header("Content-Length", str({"short": length - 10, "long": length + 10}.get(fault, length)))
        self.end_headers()
        if fault in ("cut", "unranged-cut", "stall"):
            part = length // 3 if fault == "unranged-cut" else 300_000
            self.wfile.write(content[start:start + part])
            self.wfile.flush()
            if fault == "stall":
                server.over.wait()
        elif fault == "dead":
            pass                                            # hangs up after the headers
        else:
            self.wfile.write(content[start:] + bytes(500_000 * (fault == "endless")))

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.content, server.count, server.requests, server.over = True, BYTES, {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def patiently(server, folder, attempt):
    """attempt(a folder, a short timeout); on a busy machine a good host is late, too: a failure is tried with longer ones."""
    for timeout in (STALL, 10 * STALL, 100 * STALL):
        to = folder / f"{timeout:g}"
        to.mkdir()
        server.count.clear(), server.requests.clear()
        try:
            return attempt(to, timeout)
        except (Exception, pytest.fail.Exception):
            if timeout == 100 * STALL:
                raise


def source(server, *paths, content=BYTES, digits=64):
    digest = hashlib.sha256(content).hexdigest()[:digits]
    return Source("file.bin", len(content), "sha256", digest, tuple(server.url + path for path in paths))


def faults(server):
    return [fault for fault, _ in server.requests]
