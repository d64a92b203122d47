"""An HTTP server on this machine whose replies can end early or lie about their length."""

import http.server
import threading


class Server(http.server.ThreadingHTTPServer):
    """Serve files, and record the paths and headers of all requests.

    files: {path: content}; a str redirects there, a pair (headers, content) adds headers.
    cut: bytes after which each reply ends; length_off: added to Content-Length; ranges: False to
    ignore requests for the rest of a file.
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
        requested = self.headers.get("Range") if server.ranges else None
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        if content is None:
            self.send_error(404)
        elif isinstance(content, str):
            self.reply(302, {**headers, "Location": content}, b"")
        elif not requested:
            self.reply(200, headers, content)
        elif start >= len(content):
            self.send_error(416)
        else:
            content_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(206, {**headers, "Content-Range": content_range}, content[start:])

    def reply(self, code, headers, body):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + self.server.length_off))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_):
        pass
