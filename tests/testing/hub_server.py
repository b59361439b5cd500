"""
A Hub on this machine: as much of the HTTP API as huggingface_hub needs to create, push to and load from model
repositories, kept in memory.

    with HubServer() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(home)})

huggingface_hub reads its endpoint when it is imported, so clients are other processes. Objects go the LFS way
(`HF_HUB_DISABLE_XET`): chunk storage is another server's protocol.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, TOKEN = "user", "hf_owner"
_LARGE = (".safetensors", ".png", ".jpg", ".bin", ".pt")


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # id -> path -> content
    refs: dict[str, str] = field(default_factory=dict)  # branches and tags -> id
    messages: list[tuple[str, str]] = field(default_factory=list)  # (branch, first line) in order

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        self.messages.append((branch, message))
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs[revision]]


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """
    Attributes:
        repositories: by name.
        objects: uploaded large files by their SHA-256.
        requests: `METHOD /path` of all that was asked.
        drop: regular expressions; the first request that one of them matches loses its connection half way through
            what it sends.
        broken: the requests that did.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drop: list[str] = []
        self.broken: list[str] = []
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a process that takes this server for the Hub and `home` for its cache."""
        names = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return names | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or "", "NO_PROXY": "127.0.0.1"}

    def add(self, name: str, files: dict[str, bytes]) -> None:
        """Makes a public repository of these files."""
        with self.lock:
            self.repositories[name] = Repository(private=False)
            self.repositories[name].commit("main", files, "initial commit")

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that went away is the client's business."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def _serve(self):
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        line = f"{self.command} {unquote(self.route)}"
        with self.server.lock:
            self.server.requests.append(line)
            drop = next((pattern for pattern in self.server.drop if re.search(pattern, line)), None)
            if drop is not None:
                self.server.drop.remove(drop)
                self.server.broken.append(line)
        length = int(self.headers.get("Content-Length") or 0)
        if drop is not None:
            self.rfile.read(length // 2)
            return self._hang_up()
        self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        try:
            with self.server.lock:
                self._dispatch()
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: bytes = b"", headers: dict | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self):
        """Resets the connection: the other side's read or write fails, and is not answered with an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _json(self, content, status: int = 200):
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _dispatch(self):
        rules = [
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            ("POST", r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", self._paths),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self._tree),
            ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/objects/(\w+)", self._upload),
            ("POST", r"/objects/(\w+)/verify", self._verify),
            ("HEAD|GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for methods, pattern, answer in rules:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in methods.split("|"):
                return answer(*(None if part is None else unquote(part) for part in match.groups()))
        raise _Refused(404, "RouteNotFound", f"this server has no {self.command} {self.route}")

    @property
    def _user(self) -> str | None:
        return OWNER if self.headers.get("Authorization") == f"Bearer {TOKEN}" else None

    def _repository(self, name: str, write: bool = False) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self._user is None):
            raise _Refused(404 if self._user else 401, "RepoNotFound", "Repository not found")
        if write and self._user is None:
            raise _Refused(401, "", "Invalid username or password.")
        return repository

    def _revision(self, repository: Repository, revision: str | None) -> str:
        sha = repository.find(revision or "main")
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _whoami(self):
        if self._user is None:
            raise _Refused(401, "", "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        self._json({"type": "user", "name": OWNER, "fullname": OWNER, "orgs": [], "auth": auth})

    def _validate(self):
        """The metadata is a mapping, as is each entry of the model index; the Hub's own check knows more fields."""
        content = json.loads(self.body)["content"]
        match = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else {}
            problem = None if isinstance(data, dict) else "must be a mapping"
            for entry in [] if problem else data.get("model-index", []):
                if not entry.get("name") or not all(r["task"]["type"] and r["metrics"] for r in entry["results"]):
                    problem = '"model-index" must name models, tasks and metrics'
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
        errors = [{"message": problem}] if problem else []
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self):
        if self._user is None:
            raise _Refused(401, "", "Invalid username or password.")
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        there = name in self.server.repositories
        if not there:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.server.repositories[name] = Repository(private)
            self.server.repositories[name].commit("main", {".gitattributes": b""}, "initial commit")
        self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 409 if there else 200)

    def _preupload(self, name, revision):
        repository = self._repository(name, write=True)
        files = repository.commits[self._revision(repository, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            large = path.endswith(_LARGE)
            oid = None
            if path in files:
                oid = hashlib.sha256(files[path]).hexdigest() if large else _blob_id(files[path])
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _batch(self, name):
        self._repository(name, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            here = f"{self.server.url}/objects/{oid}"
            actions = {"upload": {"href": here}, "verify": {"href": f"{here}/verify"}}
            objects.append({"oid": oid, "size": size} | ({} if oid in self.server.objects else {"actions": actions}))
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "", f"content does not have the hash {oid}")
        self.server.objects[oid] = self.body
        self._send(200)

    def _verify(self, oid):
        asked = json.loads(self.body)
        if len(self.server.objects.get(oid, b"")) != asked["size"]:
            raise _Refused(404, "", f"object {oid} is not here")
        self._send(200)

    def _commit(self, name, branch):
        repository = self._repository(name, write=True)
        files = dict(repository.commits[self._revision(repository, branch)])
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise _Refused(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, "", f"this server cannot do {item['key']}")
        sha = repository.commit(branch, files, message)
        url = f"{self.server.url}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def _branch(self, name, branch):
        repository = self._repository(name, write=True)
        if branch in repository.refs:
            raise _Refused(409, "", f"Reference already exists: {branch}")
        start = json.loads(self.body or b"{}").get("startingPoint")
        repository.refs[branch] = self._revision(repository, start)
        self._json({})

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
        if path.endswith(_LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _tree(self, name, revision, folder):
        repository = self._repository(name)
        files = repository.commits[self._revision(repository, revision)]
        start = f"{folder}/" if folder else ""
        if folder and not any(path.startswith(start) for path in files):
            raise _Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        entries, folders = [], set()
        for path, content in sorted(files.items()):
            rest = path.removeprefix(start)
            if path.startswith(start) and "/" in rest:
                folders.add(start + rest.split("/")[0])
            if path.startswith(start) and (
                "/" not in rest or self.query.get("recursive", ["false"])[0].lower() in "true1"
            ):
                entries.append(self._entry(path, content))
        kept = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        self._json(kept + entries)

    def _paths(self, name, revision):
        repository = self._repository(name)
        files = repository.commits[self._revision(repository, revision)]
        asked = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
        self._json([self._entry(path, files[path]) for path in asked["paths"] if path in files])

    def _info(self, name, revision):
        repository = self._repository(name)
        sha = self._revision(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self._json(
            {"_id": name, "id": name, "modelId": name, "sha": sha, "private": repository.private, "tags": []}
            | {"siblings": siblings, "downloads": 0, "likes": 0, "disabled": False, "gated": False}
        )

    def _resolve(self, name, revision, path):
        repository = self._repository(name)
        sha = self._revision(repository, revision)
        content = repository.commits[sha].get(path)
        if content is None:
            self._send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        entry = self._entry(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        status, part = 200, content
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            if start >= len(content):
                return self._send(416, headers={"Content-Range": f"bytes */{len(content)}"})
            status, part = 206, content[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(status, part, headers)
