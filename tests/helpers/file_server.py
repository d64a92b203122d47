"""A server on this machine, whose replies can break off or lie."""

import http.server
import threading


class Server(http.server.ThreadingHTTPServer):
    """Serves {path: content} and keeps a list of the paths asked for.

    A str as content redirects there; a pair (headers, content) adds headers.

    cut: bytes after which each reply breaks off; length_off: what is added to Content-Length;
    ranges: whether the server goes on in the middle of a file.
    """

    cut = None
    length_off = 0
    ranges = True

    def __init__(self, files):
        self.files, self.asked, self.headers = files, [], []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        server.headers.append(dict(self.headers))
        content, headers = server.files.get(self.path), {}
        if isinstance(content, tuple):
            headers, content = content
        if content is None:
            self.send_error(404)
            return
        if isinstance(content, str):
            self.reply(302, {**headers, "Location": content}, b"")
            return
        asked_for = self.headers.get("Range") if server.ranges else None
        if asked_for is None:
            self.reply(200, headers, content)
            return
        start = int(asked_for.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_error(416)
            return
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206, {**headers, "Content-Range": place}, content[start:])

    def reply(self, code, headers, body):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + self.server.length_off))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_):
        pass
