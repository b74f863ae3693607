"""A stand-in for Google Cloud Storage: a directory that behaves like a bucket.

Objects are written whole: nothing can be added to one, and nothing renamed. Python code
comes by etils' epath; by HTTP come ArrayRecord and TensorStore, which Orbax writes arrays
with.
"""

import http.server
import io
import json
import pathlib
import threading
import urllib.parse

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils
from servers import Server

PREFIX = "gs://"


class Bucket(backend.Backend):
    """What epath does with `gs://` addresses, in a directory."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self._os = backend.os_backend

    def _here(self, path):
        return str(self.root / str(path).removeprefix(PREFIX))

    def _there(self, path):
        return PREFIX + str(pathlib.Path(path).relative_to(self.root))

    def open(self, path, mode):
        if "a" in mode or "+" in mode:
            raise OSError(f"objects can't be changed: open({path!r}, {mode!r})")
        here = pathlib.Path(self._here(path))
        if "w" not in mode:
            return self._os.open(here, mode)
        here.parent.mkdir(parents=True, exist_ok=True)  # there are no directories
        content = io.BytesIO() if "b" in mode else io.StringIO()
        close = content.close

        def upload():
            if not content.closed:
                value = content.getvalue()
                data = value if isinstance(value, bytes) else value.encode()
                here.write_bytes(data)
            close()

        content.close = upload
        return content

    def exists(self, path):
        return self._os.exists(self._here(path))

    def isdir(self, path):
        return self._os.isdir(self._here(path))

    def listdir(self, path):
        return self._os.listdir(self._here(path))

    def glob(self, path):
        return [self._there(found) for found in self._os.glob(self._here(path))]

    def walk(self, top, *, top_down=True, on_error=None):
        for path, directories, files in self._os.walk(self._here(top)):
            yield self._there(path), directories, files

    def makedirs(self, path, *, exist_ok=False, mode=None):
        self._os.makedirs(self._here(path), exist_ok=exist_ok)

    def mkdir(self, path, *, exist_ok=False, mode=None):
        pathlib.Path(self._here(path)).parent.mkdir(parents=True, exist_ok=True)
        self._os.mkdir(self._here(path), exist_ok=exist_ok)

    def rmtree(self, path):
        self._os.rmtree(self._here(path))

    def remove(self, path):
        self._os.remove(self._here(path))

    def rename(self, path, dst):
        raise OSError(f"objects can't be renamed: {path} to {dst}")

    def replace(self, path, dst):
        raise OSError(f"objects can't be renamed: {path} to {dst}")

    def copy(self, path, dst, overwrite):
        self._os.copy(self._here(path), self._here(dst), overwrite)

    def stat(self, path):
        return self._os.stat(self._here(path))


class _Requests(http.server.BaseHTTPRequestHandler):
    """The part of the JSON API that TensorStore and ArrayRecord use."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _target(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        name = urllib.parse.unquote(name.lstrip("/")) or query.get("name", "")
        return self.server.root / bucket, name, query

    def _describe(self, bucket, name):
        path = bucket / name
        return {
            "kind": "storage#object",
            "name": name,
            "size": str(path.stat().st_size),
            "generation": self._generation(path),
        }

    def _generation(self, path):
        return str(path.stat().st_mtime_ns)

    def _send(self, code, content=b"", **headers):
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _meets(self, path, query):
        """Whether an object is the one that a request is for."""
        wanted = query.get("ifGenerationMatch")
        if wanted is None:
            return True
        return wanted == (self._generation(path) if path.is_file() else "0")

    def do_GET(self):
        bucket, name, query = self._target()
        if not name:
            files = [path for path in bucket.rglob("*") if path.is_file()]
            names = sorted(str(path.relative_to(bucket)) for path in files)
            names = [n for n in names if n.startswith(query.get("prefix", ""))]
            items = [self._describe(bucket, n) for n in names]
            self._send(200, json.dumps({"items": items}).encode())
            return
        path = bucket / name
        if not path.is_file():
            self._send(404)
            return
        generation = self._generation(path)
        if query.get("ifGenerationNotMatch") == generation:
            self._send(304)
            return
        content = path.read_bytes()
        code, headers = 200, {"x_goog_generation": generation}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            total = len(content)
            start = int(first) if first else total - int(last)
            end = int(last) + 1 if first and last else total
            content = content[start:end]
            code = 206
            headers["Content_Range"] = f"bytes {start}-{start + len(content) - 1}/{total}"
        self._send(code, content, **headers)

    def do_POST(self):
        bucket, name, query = self._target()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = bucket / name
        with self.server.lock:
            if not self._meets(path, query):
                self._send(412)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._send(200, json.dumps(self._describe(bucket, name)).encode())

    def do_DELETE(self):
        bucket, name, query = self._target()
        path = bucket / name
        with self.server.lock:
            if not path.is_file():
                self._send(404)
            elif not self._meets(path, query):
                self._send(412)
            else:
                path.unlink()
                self._send(204)


def serve(root, monkeypatch):
    """Has `gs://` mean a directory, for as long as `monkeypatch` lasts.

    They read the environment once in a process: so one server serves them all.
    """
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Bucket(root))
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False)
    _SERVER.root = pathlib.Path(root)


_SERVER = Server(("localhost", 0), _Requests)
_SERVER.lock = threading.Lock()
ADDRESS = f"http://localhost:{_SERVER.server_port}"
threading.Thread(target=_SERVER.serve_forever, daemon=True).start()
