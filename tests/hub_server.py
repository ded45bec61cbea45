"""A stand-in for the Hugging Face hub on the loopback interface: the endpoints that upload and download use."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml


class Hub:
    """Repositories in memory: name -> revision -> file -> bytes. `refuse`: a status that answers every upload."""

    def __init__(self):
        self.repositories = {}
        self.private = set()
        self.refuse = None
        self.requests = []

    def commit(self, name, files):
        revisions = self.repositories[name]
        files = {**revisions.get("main", {}), **files}
        identity = sha1(repr(sorted(files.items())).encode()).hexdigest()
        revisions["main"] = revisions[identity] = files
        return identity

    def identity(self, name, revision):
        files = self.repositories[name][revision]
        return next(key for key, value in self.repositories[name].items() if value is files and len(key) == 40)


class _Server(ThreadingHTTPServer):
    def __init__(self, hub):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self):
        self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(("POST", self.path))
        if self.path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            matter = yaml.safe_load(content.split("---")[1])
            errors = [] if "license" in matter else [{"message": "no license"}]
            return self.answer({"errors": errors, "warnings": []})
        if self.hub.refuse:
            return self.answer({"error": "You are not allowed to do this"}, self.hub.refuse)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization', 'owner')}/{given['name']}"
            self.hub.repositories.setdefault(name, {})
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(name)
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        found = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if not found or found[1] not in self.hub.repositories:
            return self.missing()
        if found[2] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        identity = self.hub.commit(found[1], files)
        place = f"http://{self.headers['Host']}/{found[1]}/commit/{identity}"
        return self.answer({"success": True, "commitOid": identity, "commitUrl": place, "hookOutput": ""})

    def do_GET(self):
        self.hub.requests.append((self.command, self.path))
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            name, revision = found[1], found[2] or "main"
            if revision not in self.hub.repositories.get(name, {}):
                return self.missing()
            files = self.hub.repositories[name][revision]
            about = {"id": name, "sha": self.hub.identity(name, revision), "private": False, "tags": [], "downloads": 0}
            return self.answer({**about, "likes": 0, "siblings": [{"rfilename": file} for file in files]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            files = self.hub.repositories.get(found[1], {}).get(found[2], {})
            return self.answer([
                {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                for name, content in files.items()
            ])  # fmt: skip
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.hub.repositories.get(found[1], {}).get(found[2], {})
            if found[3] not in files:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            content = files[found[3]]
            identity = self.hub.identity(found[1], found[2])
            return self.answer(content, ETag=f'"{sha1(content).hexdigest()}"', X_Repo_Commit=identity)
        return self.missing()

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def running():
    """A hub and its address."""
    server = _Server(Hub())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
