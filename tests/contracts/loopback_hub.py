"""A small Hub in this process: the part of its HTTP interface that pushing and loading a model uses.

huggingface_hub reads `HF_ENDPOINT` and `HF_HUB_DISABLE_XET` when it is imported, so that clients are fresh processes:
`LoopbackHub.environment` has what they need.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS_ENDINGS = (".safetensors", ".onnx", ".bin", ".png", ".parquet")
WRITER, READER = "hf_writer", "hf_reader"  # tokens of one owner, `me`


@dataclass
class Repository:
    """Commits of files by path, and branches."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]

    def sha(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class LoopbackHub:
    """The Hub as a context manager; `requests` has what was asked of it, `repositories` what it holds."""

    def __enter__(self) -> LoopbackHub:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        switches = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1")
        login = {} if token is None else {"HF_TOKEN": token}
        return {**environment, **switches, **login, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "*"}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def answer(self, content: object = None, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def respond(self) -> None:
        url, body = urlsplit(self.path), self.body()
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.hub.requests.append((self.command, url.path))
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:1] != ["lfs"] and not self.may(parts):
            return
        if parts == [""]:  # whether it is there
            self.answer()
        elif parts[0] == "lfs":
            self.hub.objects[parts[1]] = body
            self.answer()
        elif parts[0] == "api":
            self.api(parts[1:], body)
        elif (parts := parts[1:] if parts[0] in ("datasets", "spaces") else parts)[1].endswith(".git"):
            self.batch(json.loads(body))
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def may(self, parts: list[str]) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        writes = self.command in ("POST", "PUT") and parts[-2:-1] != ["paths-info"] and parts[-1] != "paths-info"
        if token not in ("", WRITER, READER) or (not token and parts[-1] == "whoami-v2"):
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif writes and token != WRITER:
            self.answer({"error": "You don't have the rights to do this"}, 403 if token else 401)
        else:
            return True
        return False

    def api(self, parts: list[str], body: bytes) -> None:
        if parts == ["whoami-v2"]:
            role = "read" if READER in self.headers["Authorization"] else "write"
            self.answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}})
        elif parts == ["repos", "create"]:
            self.create(json.loads(body))
        elif parts == ["validate-yaml"]:
            self.answer({"errors": [], "warnings": []})
        else:
            name, what, rest = "/".join(parts[1:3]), parts[3] if len(parts) > 3 else "", parts[4:]
            repository = self.hub.repositories.get(name)
            if repository is None:
                self.missing("RepoNotFound")
            elif what in ("preupload", "commit", "branch"):
                getattr(self, what)(name, repository, rest[0], body)
            else:
                self.read(name, repository, what, rest, body)

    def create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            self.answer({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            return
        repository = self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b""})
        self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def preupload(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, asked: dict) -> None:
        objects = []
        for one in asked["objects"]:  # one that is here already has no actions
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            objects.append(one if one["oid"] in self.hub.objects else {**one, **upload})
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def commit(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        files = dict(repository.commits[repository.refs[revision]])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        proposed = {}
        if self.query.get("create_pr"):
            revision = "refs/pr/1"
            proposed = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"}
        sha = repository.commit(revision, files)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", **proposed})

    def branch(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        repository.refs[revision] = repository.refs["main"]
        self.answer({})

    def read(self, name: str, repository: Repository, what: str, rest: list[str], body: bytes) -> None:
        if what == "refs":
            branches = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in repository.refs.items()
            ]
            self.answer({"branches": branches, "tags": [], "converts": []})
            return
        sha = repository.sha(rest[0] if rest else "main")
        if sha is None:
            self.missing("RevisionNotFound")
            return
        files = repository.commits[sha]
        if what == "tree":
            self.tree(files, "/".join(rest[1:]))
        elif what == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            self.answer([_entry(path, files[path]) for path in asked if path in files])
        else:
            facts = {"id": name, "modelId": name, "sha": sha, "private": repository.private, "tags": [], "downloads": 0}
            self.answer({**facts, "likes": 0, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        inside = [path for path in files if not folder or path.startswith(f"{folder}/")]
        if not inside:
            self.missing("EntryNotFound")
        elif self.query.get("recursive", "").lower() == "true":
            self.answer([_entry(path, files[path]) for path in inside])
        else:
            depth = len(folder.split("/")) if folder else 0
            here = [path for path in inside if path.count("/") == depth]
            folders = {"/".join(path.split("/")[: depth + 1]) for path in inside if path.count("/") > depth}
            entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            self.answer([*entries, *(_entry(path, files[path]) for path in here)])

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        token = self.headers.get("Authorization")
        if repository is None or (repository.private and not token):
            self.missing("RepoNotFound")
            return
        sha = repository.sha(revision)
        content = None if sha is None else repository.commits[sha].get(path)
        if sha is None or content is None:
            self.missing("RevisionNotFound" if sha is None else "EntryNotFound")
            return
        headers = {"ETag": f'"{_entry(path, content)["oid"]}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            self.answer(content, **headers)
            return
        first, _, last = asked.partition("-")
        end = min(int(last or len(content)), len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{end}/{len(content)}"
        self.answer(content[int(first) : end + 1], 206, **headers)


def _entry(path: str, content: bytes) -> dict:
    """A file as the tree shows it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LFS_ENDINGS):
        oid = hashlib.sha256(content).hexdigest()
        entry |= {"oid": oid, "lfs": {"oid": oid, "size": len(content), "pointerSize": 130}}
    return entry
