"""A small Hugging Face hub on loopback: repositories from memory, and every way in which a network can be bad.

    with FakeHub() as hub:
        hub.add("org/repo", {"config.json": b"...", "model.safetensors": b"..."})
        run_restkv("pull", "org/repo", environment=hub.environment(tmp_path))

LFS files (what `is_lfs` says) answer with a redirect to a second server on another port, the store, as the real hub's do;
all others come from the hub itself. `hub.log` and `hub.store_log` hold (path, headers) of every request.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


class Repo:
    def __init__(self, files: dict[str, bytes], commit: str | None = None) -> None:
        self.files = files
        self.commit = commit or hashlib.sha1(repr(sorted((n, git_sha1(c)) for n, c in files.items())).encode()).hexdigest()
        self.listing_override = None  # bytes that are answered instead of the listing
        self.refusal: tuple[int, str] | None = None  # (status, X-Error-Code) for everybody without the hub's token

    def digest(self, name: str) -> str:
        content = self.files[name]
        return hashlib.sha256(content).hexdigest() if is_lfs(name) else git_sha1(content)

    def listing(self, name: str) -> bytes:
        if self.listing_override is not None:
            return self.listing_override
        siblings = []
        for file, content in self.files.items():
            entry = {"rfilename": file, "size": len(content), "blobId": git_sha1(content)}
            if is_lfs(file):
                entry["lfs"] = {"sha256": self.digest(file), "size": len(content), "pointerSize": 134}
                entry["blobId"] = git_sha1(b"pointer of " + file.encode())
            siblings.append(entry)
        return json.dumps({"id": name, "sha": self.commit, "private": False, "gated": False, "siblings": siblings}).encode()

    def tree(self) -> bytes:
        """The same as huggingface_hub asks for it: GET /api/models/ORG/REPO/tree/REV."""
        entries = []
        for file, content in self.files.items():
            entry = {"type": "file", "path": file, "size": len(content), "oid": git_sha1(content)}
            if is_lfs(file):
                entry["lfs"] = {"oid": self.digest(file), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return json.dumps(entries).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def refuse(self, status: int, code: str = "", message: str = "", headers=()):
        body = json.dumps({"error": message or code}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server.hub
        is_store = self.server is hub.store_server
        path = unquote(urlsplit(self.path).path)
        with hub.lock:
            (hub.store_log if is_store else hub.log).append((self.path, dict(self.headers)))
        if hub.answers_503 > 0 and not is_store:
            hub.answers_503 -= 1
            return self.refuse(503, headers=[("Retry-After", "0")])
        if hub.endless_status:
            return self.send_endless(hub.endless_status)
        if is_store:
            _, org, name, file = path.split("/", 3)
            return self.send_file(hub.repos[f"{org}/{name}"], file)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.send_listing(parts[2:])
        if len(parts) > 4 and parts[2] == "resolve":
            return self.send_resolved("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.refuse(404)

    def send_endless(self, status: int):
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = b"x" * 65536
        while not self.server.hub.stop.is_set():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"

    def find(self, name: str) -> Repo | None:
        """The repository, or None after a refusal was sent."""
        hub = self.server.hub
        if self.headers.get("Authorization") and not self.has_token():
            self.refuse(401, message="Invalid credentials in Authorization header")
            return None
        repo = hub.repos.get(name)
        if repo is None:  # as the real hub: who is not logged in may not know whether it is private
            self.refuse(404 if self.has_token() else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.refusal and not self.has_token():
            self.refuse(*repo.refusal, "Access to this model is restricted")
            return None
        return repo

    def send_listing(self, parts: list[str]):
        name = "/".join(parts[:2])
        if name in self.server.hub.renamed:
            target = self.server.hub.renamed[name]
            return self.refuse(307, headers=[("Location", f"/api/models/{target}/" + "/".join(parts[2:]) + "?blobs=true")])
        repo = self.find(name)
        if repo is None:
            return None
        revision = "/".join(parts[3:]) if len(parts) > 2 else "main"
        if revision not in ("main", repo.commit, "refs/pr/1"):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        body = repo.tree() if parts[2:3] == ["tree"] else repo.listing(name)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def send_resolved(self, name: str, revision: str, file: str):
        hub = self.server.hub
        name = hub.renamed.get(name, name)
        repo = self.find(name)
        if repo is None:
            return None
        if revision not in ("main", repo.commit):
            return self.refuse(404, "RevisionNotFound")
        if file not in repo.files:
            return self.refuse(404, "EntryNotFound", headers=[("X-Repo-Commit", repo.commit)])
        if is_lfs(file):
            target = hub.redirect_override or f"{hub.store_url}/{name}/{file}?Signature=secret"
            return self.refuse(302, headers=[("Location", target), ("X-Repo-Commit", repo.commit),
                                             ("X-Linked-ETag", f'"{repo.digest(file)}"'),
                                             ("X-Linked-Size", str(len(repo.files[file])))])
        return self.send_file(repo, file)

    def send_file(self, repo: Repo, file: str):
        hub = self.server.hub
        content = hub.wrong_content.get(file, repo.files[file])
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and hub.honours_ranges:
            start = int(wanted[len("bytes="):].split("-")[0])
            if start >= len(content):
                return self.refuse(416)
        body = content[start:]
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{repo.digest(file)}"')
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut_after = hub.cuts[file].pop(0) if hub.cuts.get(file) else None
        if cut_after is not None:
            self.wfile.write(body[:cut_after])
            self.wfile.flush()
            if hub.stalls:
                hub.stop.wait(20)
            self.close_connection = True
            self.connection.close()
            return None
        if hub.bytes_per_second:
            piece = max(1, hub.bytes_per_second // 20)
            for at in range(0, len(body), piece):
                self.wfile.write(body[at:at + piece])
                time.sleep(0.05)
            return None
        self.wfile.write(body)
        return None


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that goes away is part of the tests


class FakeHub:
    def __init__(self, certificate: tuple[str, str] | None = None) -> None:
        """`certificate`: files of a certificate and its key; both servers speak TLS then."""
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.token = "hf_testtoken"
        self.cuts: dict[str, list[int]] = {}  # file -> after how many bytes each of its next answers is cut
        self.wrong_content: dict[str, bytes] = {}
        self.honours_ranges = True
        self.stalls = False  # a cut answer stays open instead
        self.answers_503 = 0
        self.bytes_per_second = 0
        self.endless_status = 0  # every answer has this status and a body without an end
        self.redirect_override: str | None = None
        self.log: list[tuple[str, dict]] = []
        self.store_log: list[tuple[str, dict]] = []
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.server, self.store_server = (QuietServer(("127.0.0.1", 0), Handler) for _ in range(2))
        scheme = "https" if certificate else "http"
        self.url, self.store_url = (f"{scheme}://127.0.0.1:{s.server_address[1]}" for s in (self.server, self.store_server))
        for server in (self.server, self.store_server):
            if certificate:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True)
            server.hub = self
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def add(self, name: str, files: dict[str, bytes], commit: str | None = None) -> Repo:
        self.repos[name] = Repo(files, commit)
        return self.repos[name]

    def environment(self, home, **more) -> dict[str, str]:
        """Of a program that takes this hub for the real one and keeps its cache in `home`."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_CACHE": "", "HF_TOKEN": "", "HF_TOKEN_PATH": "",
                "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **more}

    def downloads(self, file: str) -> list[tuple[str, dict]]:
        """The requests for a file's content."""
        return [entry for entry in self.log + self.store_log
                if unquote(urlsplit(entry[0]).path).endswith("/" + file) and "/api/" not in entry[0]
                and not (is_lfs(file) and "/resolve/" in entry[0])]

    def close(self) -> None:
        self.stop.set()
        for server in (self.server, self.store_server):
            server.shutdown()
            server.server_close()

    def __enter__(self) -> "FakeHub":
        return self

    def __exit__(self, *_) -> None:
        self.close()
