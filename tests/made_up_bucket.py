"""A made-up gs:// bucket: objects in memory, behind fsspec and the HTTP that tensorstore speaks.

It has an object store's manners: folders are only prefixes, an object appears whole when it is
closed, nothing can be appended to, no file has a modification time that can be set, and a rename
is a copy and a deletion, an object at a time.
"""

import http.server
import io
import json
import re
import threading
import time
import urllib.parse

import fsspec


class Objects:
    """Name -> bytes, for any number of readers and writers; `puts` counts what was written."""

    def __init__(self):
        self.lock = threading.RLock()
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.puts = 0

    def put(self, name: str, data: bytes, generation: int | None = None) -> bool:
        """generation: writes only over an object of this number; 0: only where there is none."""
        with self.lock:
            if generation is not None and self.objects.get(name, (b"", 0, 0))[1] != generation:
                return False
            self.puts += 1
            self.objects[name] = (data, self.puts, time.time())
            return True

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))


STORE = Objects()


class Upload(io.BytesIO):
    """Nothing is there before it is closed."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def close(self):
        if not self.closed:
            STORE.put(self.name, self.getvalue())
        super().close()

    def __exit__(self, kind, *rest):
        if kind is None:
            return super().__exit__(kind, *rest)
        super().close()  # what failed half-way is never seen


class Bucket(fsspec.AbstractFileSystem):
    protocol = ("gs", "gcs")

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        found = {}
        for name in STORE.names(path):
            if name == path:
                found[name] = self._file(name)
            elif name.startswith(path + "/"):
                child = path + "/" + name[len(path) + 1 :].partition("/")[0]
                folder = {"name": child, "size": 0, "type": "directory"}
                found[child] = self._file(name) if child == name else folder
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def _file(self, name: str) -> dict:
        data, _, when = STORE.objects[name]
        return {"name": name, "size": len(data), "type": "file", "mtime": when}

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path in STORE.objects:
            return self._file(path)
        if STORE.names(path + "/") or "/" not in path:
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            if path not in STORE.objects:
                raise FileNotFoundError(path)
            return io.BytesIO(STORE.objects[path][0])
        if mode != "wb":
            raise NotImplementedError(f"an object store has no mode {mode}")
        return Upload(path)

    def mkdir(self, path, create_parents=True, **_):
        pass  # a folder is a prefix

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        pass

    def rm_file(self, path):
        with STORE.lock:
            if STORE.objects.pop(self._strip_protocol(path), None) is None:
                raise FileNotFoundError(path)

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        names = [n for n in STORE.names(path) if n == path or recursive and n[len(path)] == "/"]
        if not names:
            raise FileNotFoundError(path)
        for name in names:
            self.rm_file(name)

    def cp_file(self, path1, path2, **_):
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if path1 in STORE.objects:
            STORE.put(path2, STORE.objects[path1][0])


class Handler(http.server.BaseHTTPRequestHandler):
    """As much of the JSON interface of Google's storage as tensorstore speaks."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _place(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        found = re.search(r"/b/([^/]+)(?:/o/(.+))?", url.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        assert found, self.path
        name = found[2] or query.get("name", "")
        return f"{found[1]}/{urllib.parse.unquote(name)}", query

    def _answer(self, status: int, body: bytes, generation: int = 0, is_json=True):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json" if is_json else "application/x")
        if generation:
            self.send_header("x-goog-generation", str(generation))
            self.send_header("x-goog-stored-content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _about(self, name: str) -> dict:
        data, generation, _ = STORE.objects[name]
        bucket, _, key = name.partition("/")
        times = {"updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z"}
        about = {"name": key, "bucket": bucket, "generation": str(generation)}
        return about | {"size": str(len(data)), "metageneration": "1"} | times

    def do_GET(self):
        name, query = self._place()
        with STORE.lock:
            if name.endswith("/"):  # of the whole bucket: a list
                bucket = name
                start = query.get("startOffset", "")
                names = [
                    n
                    for n in STORE.names(bucket + query.get("prefix", ""))
                    if n[len(bucket) :] >= start
                    and ("endOffset" not in query or n[len(bucket) :] < query["endOffset"])
                ]
                return self._answer(
                    200, json.dumps({"items": [self._about(n) for n in names]}).encode()
                )
            if name not in STORE.objects:
                return self._answer(404, b"{}")
            data, generation, _ = STORE.objects[name]
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, b"")
        if "alt" not in query:
            return self._answer(200, json.dumps(self._about(name)).encode())
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._answer(200, data, generation, is_json=False)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Type", "application/x")
        self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        self.wfile.write(part)

    def do_POST(self):
        name, query = self._place()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        needed = query.get("ifGenerationMatch")
        if not STORE.put(name, body, None if needed is None else int(needed)):
            return self._answer(412, b"{}")
        self._answer(200, json.dumps(self._about(name)).encode())

    def do_DELETE(self):
        name, _ = self._place()
        with STORE.lock:
            known = STORE.objects.pop(name, None)
        self._answer(204 if known else 404, b"")


def serve() -> tuple[str, http.server.ThreadingHTTPServer]:
    """The address of a server of the objects, and the server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}", server
