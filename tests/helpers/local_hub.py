"""A small Hugging Face Hub on loopback: as much of the protocol as creating, pushing, listing and loading need.

`local_hub(home)` gives the environment of its clients, and itself. Repositories live in memory, each a list of
revisions; pull requests are revisions of their own. Weights and parquet files travel by the large-file protocol of git
(LFS), as on the real Hub without Xet, all others within the commit. `Hub.watch` sees every request come and go, and
may cut it off or refuse it.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

KINDS = r"(?P<kind>models|datasets|spaces)"
NAME = r"(?P<name>[^/]+/[^/]+)"
API = re.compile(rf"/api/{KINDS}/{NAME}(?:/(?P<what>[\w-]+)(?:/(?P<revision>[^/]+))?(?:/(?P<path>.*))?)?")
RESOLVE = re.compile(rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")

LARGE = (".safetensors", ".parquet")
BATCH = re.compile(rf"/(?:(?:datasets|spaces)/)?{NAME}\.git/info/lfs/objects/batch")

Files = dict[str, bytes]

# What `Hub.watch` is told of each request, in this order; at the last one it has been carried out.
ARRIVED, HALFWAY, BEFORE_THE_ANSWER = "arrived", "half of its body has arrived", "before the answer"


class Cut(Exception):
    """Raised by `Hub.watch`: the connection ends here, without an answer."""


class Hub:
    """Repositories by (kind, name): (commit, branch, files) in the order of their making.

    `watch(moment, request)`, as in `watch(ARRIVED, "POST /api/repos/create")`, is called by the thread that serves the
    request. A status that it returns upon arrival is all the answer there is.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], list[tuple[str, str, Files]]] = {}
        self.large: Files = {}  # large files by their sha256
        self.watch: Callable[[str, str], int | None] = lambda moment, request: None

    def commit(self, key: tuple[str, str], files: Files, branch: str = "main") -> str:
        revisions = self.repositories.setdefault(key, [])
        number = hashlib.sha1(repr((key, len(revisions), sorted(files))).encode()).hexdigest()
        revisions.append((number, branch, files))
        return number

    def head(self, key: tuple[str, str], revision: str = "main") -> tuple[str, Files]:
        for number, branch, files in reversed(self.repositories[key]):
            if revision in (number, branch):
                return number, files
        raise KeyError(revision)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for its body
    server: "Server"

    def log_message(self, format: str, *args) -> None:
        pass

    def answer(self, body, code: int = 200, **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.server.hub.watch(BEFORE_THE_ANSWER, self.name)
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def home(self, kind: str, name: str) -> str:
        return f"http://{self.headers['Host']}/{'' if kind == 'models' else kind + '/'}{name}"

    def missing(self, what: str) -> None:
        self.answer({"error": f"{what} is missing"}, 404, X_Error_Code=what, X_Error_Message=f"{what} is missing")

    def handle_request(self) -> None:
        try:
            self.serve()
        except (Cut, ConnectionError):
            self.close_connection = True

    def serve(self) -> None:
        url = urlparse(self.path)
        path, size = unquote(url.path), int(self.headers.get("Content-Length") or 0)
        self.name = f"{self.command} {path}"
        refused = self.server.hub.watch(ARRIVED, self.name)
        data = self.rfile.read(size // 2)
        self.server.hub.watch(HALFWAY, self.name)
        data += self.rfile.read(size - size // 2)
        if len(data) < size:  # who sent it is gone
            raise Cut
        if refused:
            self.answer({"error": f"status {refused}"}, refused)
        elif path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "tester", "fullname": "tester", "orgs": []})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(data))
        elif BATCH.fullmatch(path):
            objects = json.loads(data)["objects"]
            for file in objects:
                if file["oid"] not in self.server.hub.large:
                    file["actions"] = {"upload": {"href": f"http://{self.headers['Host']}/large/{file['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif path.startswith("/large/"):
            oid = path.removeprefix("/large/")
            if hashlib.sha256(data).hexdigest() == oid:
                self.server.hub.large[oid] = data
                self.answer({})
            else:
                self.answer({"error": "these are not the bytes that were announced"}, 400)
        elif match := RESOLVE.fullmatch(path):
            self.resolve(match)
        elif match := API.fullmatch(path):
            self.repository(match, parse_qs(url.query), data)
        else:
            self.answer({"error": f"no {path} here"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def create(self, wanted: dict) -> None:
        hub, name = self.server.hub, f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        key = (f"{wanted.get('type') or 'model'}s", name)
        answer = {"url": self.home(*key), "name": name, "id": name}
        if key[0] == "spaces" and not wanted.get("sdk"):
            self.answer({"error": "a Space needs an sdk"}, 400)
        elif key in hub.repositories:
            self.answer(answer | {"error": "it is there"}, 409)
        else:
            hub.commit(key, {".gitattributes": b""})
            self.answer(answer)

    def resolve(self, match: re.Match) -> None:
        hub, key = self.server.hub, (match["kind"] or "models", match["name"])
        if key not in hub.repositories:
            return self.missing("RepoNotFound")
        try:
            number, files = hub.head(key, match["revision"])
        except KeyError:
            return self.missing("RevisionNotFound")
        if match["path"] not in files:
            return self.missing("EntryNotFound")
        body = files[match["path"]]
        self.answer(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=number, Accept_Ranges="bytes")

    def repository(self, match: re.Match, query: dict, data: bytes) -> None:
        hub, key, branch = self.server.hub, (match["kind"], match["name"]), match["revision"] or "main"
        if key not in hub.repositories:
            return self.missing("RepoNotFound")
        try:
            number, files = hub.head(key, branch)
        except KeyError:
            return self.missing("RevisionNotFound")
        what = match["what"]
        if what in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.answer({"_id": "0", "id": match["name"], "sha": number, "private": False, "siblings": siblings})
        elif what == "tree":
            inside = _inside(match["path"] or "", files, deep="true" in query.get("recursive", []))
            self.answer([_entry(path, files) for path in inside]) if inside else self.missing("EntryNotFound")
        elif what == "paths-info":
            paths = json.loads(data)["paths"] if data[:1] == b"{" else parse_qs(data.decode()).get("paths", [])
            self.answer([_entry(path, files) for path in paths if path in files or _inside(path, files)])
        elif what == "preupload":
            paths = [file["path"] for file in json.loads(data)["files"]]
            modes = ["lfs" if path.endswith(LARGE) else "regular" for path in paths]
            files_of = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes, strict=True)]
            self.answer({"files": files_of})
        elif what == "commit":
            self.commit(match, files, data, asked_for_review="1" in query.get("create_pr", []))
        else:
            self.answer({"error": f"no {what} here"}, 404)

    def commit(self, match: re.Match, files: Files, data: bytes, asked_for_review: bool) -> None:
        files = dict(files)
        for line in data.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.hub.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        branch = "refs/pr/1" if asked_for_review else match["revision"]
        number = self.server.hub.commit((match["kind"], match["name"]), files, branch)
        home = self.home(match["kind"], match["name"])
        answer = {"success": True, "commitOid": number, "commitUrl": f"{home}/commit/{number}", "hookOutput": ""}
        self.answer(answer | ({"pullRequestUrl": f"{home}/discussions/1"} if asked_for_review else {}))


def _inside(folder: str, files: Files, deep: bool = False) -> list[str]:
    """The files in a folder and the folders in it; `deep`: the files in those, too."""
    start = folder.strip("/") + "/" if folder.strip("/") else ""
    rest = [path.removeprefix(start) for path in files if path.startswith(start)]
    return sorted(
        start + name for name in set(rest) | {name.split("/")[0] for name in rest} if deep or "/" not in name
    )


def _entry(path: str, files: Files) -> dict:
    if path not in files:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
    return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()


@contextmanager
def local_hub(home: Path):
    """The environment of the clients of a fresh Hub, who cache in `home`, and the Hub."""
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_address[1]}", HF_TOKEN="any", HF_HUB_OFFLINE="0")
    try:
        yield address | dict(HF_HOME=str(home), HF_HUB_DISABLE_XET="1"), server.hub
    finally:
        server.shutdown()
        server.server_close()
