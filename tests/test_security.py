"""Who may ask, over what: TLS on both ports, tokens, and what is never logged. Real sockets, real clients."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import builders
import grpc
import pytest
import trustme
from server_tools import Running, serving

import mserve
from mserve.server.access import TokenFile
from mserve.wire.messages import message

SECRET, OTHER, ADMIN = "s3cret-of-a-client", "of-another-client", "s3cret-of-an-operator"
ROW = {"instances": [[1.0]]}


@contextmanager
def configured(folder: Path, tables: str, *flags: str, ready: bool = True) -> Iterator[Running]:
    """A server with one model `m` and the given tables of mserve.toml."""
    if not (folder / "m").exists():
        mserve.export(builders.constant(7), folder / "m", golden=0)
    config = folder / "mserve.toml"
    config.write_text(f'[models.m]\nbase_path = "m"\n\n{tables}\n')
    with serving(
        f"--config={config}", folder / "log", *flags, ready=ready and "[tls]" not in tables
    ) as running:
        running.wait_until(lambda: "m version 1: available" in running.log())
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with tokens for clients and for operators, an access log and a request log."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(f"# clients\n{SECRET}\n\n{OTHER}\n")
    (folder / "admins").write_text(ADMIN + "\n")
    tables = """
[server]
admin = true
[auth]
tokens = "tokens"
admin_tokens = "admins"
[log]
level = "debug"
access = true
[request_log]
path = "requests.jsonl"
sample = 1.0
"""
    with configured(folder, tables) as running:
        yield running


PREDICT = "/v1/models/m:predict"
TOKEN_CASES = [
    ("no token", "POST", PREDICT, {}, 401),
    ("a wrong one", "POST", PREDICT, bearer("guess"), 401),
    ("the beginning of a right one", "POST", PREDICT, bearer(SECRET[:-1]), 401),
    ("a right one of another scheme", "POST", PREDICT, {"Authorization": f"Basic {SECRET}"}, 401),
    ("a comment of the file", "POST", PREDICT, bearer("# clients"), 401),
    ("an empty one", "POST", PREDICT, bearer(""), 401),
    ("a client's", "POST", PREDICT, bearer(SECRET), 200),
    ("another client's, scheme in small letters", "POST", PREDICT, {"authorization": f"bearer {OTHER}"}, 200),
    ("an operator's", "POST", PREDICT, bearer(ADMIN), 200),
    ("the list of models needs one", "GET", "/v1/models", {}, 401),
    ("the metrics need one", "GET", "/metrics", {}, 401),
    ("pages that do not exist need one", "GET", "/nothing", {}, 401),
    ("probes need none", "GET", "/livez", {}, 200),
    ("probes need none", "GET", "/readyz", {}, 200),
]


@pytest.mark.parametrize(("what", "method", "path", "headers", "status"), TOKEN_CASES)
def test_tokens(
    guarded: Running, what: str, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    body = json.dumps(ROW).encode() if method == "POST" else None
    answer = guarded.ask(method, path, body, headers)
    assert answer.status == status, what
    assert status != 401 or "token" in answer.error


def test_no_token_is_ever_logged(guarded: Running) -> None:
    guarded.ask("POST", PREDICT, json.dumps(ROW).encode(), bearer(SECRET))
    guarded.ask("POST", PREDICT, b"{", bearer(ADMIN))
    guarded.ask("POST", PREDICT, b"{}", bearer("guess-8731"))
    folder = guarded.log_path.parent
    guarded.wait_until(lambda: (folder / "requests.jsonl").stat().st_size)
    for text in (guarded.log(), (folder / "requests.jsonl").read_text()):
        assert not any(t in text for t in (SECRET, OTHER, ADMIN, "guess-8731"))


def test_tokens_are_read_again_when_their_file_changes_and_kept_when_it_is_gone(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token\n")
    with configured(tmp_path, '[server]\npoll = 0.05\n[auth]\ntokens = "tokens"') as server:

        def status(token: str) -> int:
            return server.ask("GET", "/v1/models", None, bearer(token)).status

        assert (status("first-token"), status("second-token")) == (200, 401)
        new = tmp_path / "new"
        new.write_text("second-token\n")
        new.rename(tokens)
        server.wait_until(lambda: status("second-token") == 200)
        assert status("first-token") == 401
        tokens.unlink()
        server.wait_until(lambda: "keeping the tokens" in server.log())
        assert status("second-token") == 200
        tokens.write_text("# nobody\n")
        server.wait_until(lambda: status("second-token") == 401)
        assert "holds no token any more: all are revoked" in server.log()
        tokens.write_text("second-token\n")
        server.wait_until(lambda: status("second-token") == 200)


def test_a_token_file_that_is_being_written_revokes_nobody(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("one\ntwo\n")
    file = TokenFile(tmp_path / "tokens")
    file.read()
    for text in ("", "one\n", "one\ntwo\nthree\n"):
        (tmp_path / "tokens").write_text(text)
        file.follow()
        assert len(file.digests) == 2, "it has just changed"
    file.follow()
    assert len(file.digests) == 3


@pytest.mark.parametrize(
    ("what", "text", "part"), [("an empty file", "", "no token"), ("only comments", "# a\n", "no token")]
)
def test_a_server_without_a_usable_token_does_not_start(
    tmp_path: Path, what: str, text: str, part: str
) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(AssertionError, match=part), configured(tmp_path, '[auth]\ntokens = "tokens"'):
        pass


def call(channel: grpc.Channel, name: str, token: str = "", body: bytes = b"") -> str:
    """The status of one health check, or of a call that needs a token."""
    method = channel.unary_unary(f"/{name}")
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        method(body, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write_pair(authority: trustme.CA, folder: Path, name: str = "127.0.0.1") -> None:
    """server.pem, server.key and ca.pem, each in place at once."""
    pair = authority.issue_cert(name)
    for file, pem in (("server.pem", pair.cert_chain_pems[0]), ("server.key", pair.private_key_pem)):
        pem.write_to_path(folder / (file + ".new"))
    for file in ("server.pem", "server.key"):
        os.replace(folder / (file + ".new"), folder / file)
    authority.cert_pem.write_to_path(folder / "ca.pem")


TLS = '[server]\npoll = 0.05\n[tls]\ncert = "server.pem"\nkey = "server.key"\n'


def ask_tls(server: Running, context: ssl.SSLContext) -> tuple[int, bytes]:
    """A prediction over TLS, and the serial number of the certificate that was shown."""
    link = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=20)
    try:
        link.connect()
        shown = link.sock.getpeercert(True)  # type: ignore[union-attr]
        link.request("POST", PREDICT, json.dumps(ROW))
        return link.getresponse().status, shown or b""
    finally:
        link.close()


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.pem"))


def test_tls_on_both_ports_with_a_certificate_that_is_replaced(authority: trustme.CA, tmp_path: Path) -> None:
    write_pair(authority, tmp_path)
    with configured(tmp_path, TLS) as server:
        curl = ["curl", "-sS", "--fail", "--cacert", str(tmp_path / "ca.pem")]
        assert subprocess.check_output([*curl, f"https://127.0.0.1:{server.port}/livez"]) == b"ok\n"
        status, first = ask_tls(server, trusting(tmp_path))
        assert status == 200
        credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            assert call(channel, "grpc.health.v1.Health/Check") == "OK"
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            assert call(channel, "grpc.health.v1.Health/Check") == "UNAVAILABLE"
        with pytest.raises((http.client.HTTPException, OSError)):
            server.get("/livez")
        with pytest.raises(ssl.SSLError):
            ask_tls(server, ssl.create_default_context())

        write_pair(authority, tmp_path)
        server.wait_until(lambda: ask_tls(server, trusting(tmp_path))[1] != first)
        (tmp_path / "server.pem").write_text("spoiled")
        server.wait_until(lambda: "keeping the certificate" in server.log())
        assert ask_tls(server, trusting(tmp_path))[0] == 200
        assert "PRIVATE KEY" not in server.log()


def test_mutual_tls_admits_clients_of_the_authority_only(authority: trustme.CA, tmp_path: Path) -> None:
    write_pair(authority, tmp_path)

    def client(signer: trustme.CA) -> tuple[ssl.SSLContext, Any]:
        pair = signer.issue_cert("client@example.org")
        context = trusting(tmp_path)
        pair.configure_cert(context)
        root = (tmp_path / "ca.pem").read_bytes()
        key, chain = pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes()
        return context, grpc.ssl_channel_credentials(root, key, chain)

    def grpc_status(server: Running, credentials: Any) -> str:
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            return call(channel, "grpc.health.v1.Health/Check")

    with configured(tmp_path, TLS + 'client_ca = "ca.pem"') as server:
        known, stranger = client(authority), client(trustme.CA())
        assert ask_tls(server, known[0])[0] == 200
        assert grpc_status(server, known[1]) == "OK"
        for context in (stranger[0], trusting(tmp_path)):
            with pytest.raises(OSError):  # noqa: PT011 - how it ends is the client's business
                ask_tls(server, context)
        assert grpc_status(server, stranger[1]) == "UNAVAILABLE"


def test_clients_of_an_authority_that_was_replaced_are_refused(authority: trustme.CA, tmp_path: Path) -> None:
    """On connections that begin then; those there are go on. Sessions of before are not resumed."""
    write_pair(authority, tmp_path)
    former, new = trustme.CA(), trustme.CA()
    former.cert_pem.write_to_path(tmp_path / "clients.pem")

    def client(signer: trustme.CA) -> ssl.SSLContext:
        context = trusting(tmp_path)
        signer.issue_cert("client@example.org").configure_cert(context)
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which whoever is refused learns it at once
        return context

    with configured(tmp_path, TLS + 'client_ca = "clients.pem"') as server:
        old, young = client(former), client(new)
        lasting = http.client.HTTPSConnection("127.0.0.1", server.port, context=old, timeout=20)
        lasting.request("GET", "/livez")
        assert lasting.getresponse().read() == b"ok\n"
        session = lasting.sock.session  # type: ignore[union-attr]
        assert session is not None
        with pytest.raises(OSError):  # noqa: PT011 - how it ends is the client's business
            ask_tls(server, young)
        new.cert_pem.write_to_path(tmp_path / "clients.new")
        os.replace(tmp_path / "clients.new", tmp_path / "clients.pem")
        server.wait_until(lambda: "a new certificate is in use" in server.log())
        assert ask_tls(server, young)[0] == 200
        with pytest.raises(OSError):  # noqa: PT011
            ask_tls(server, old)
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as link,
            pytest.raises(OSError),  # noqa: PT011
        ):
            old.wrap_socket(link, server_hostname="127.0.0.1", session=session)
        lasting.request("GET", "/livez")
        assert lasting.getresponse().read() == b"ok\n"
        lasting.close()


def test_connections_count_before_they_have_shaken_hands(authority: trustme.CA, tmp_path: Path) -> None:
    write_pair(authority, tmp_path)
    with configured(tmp_path, TLS + "[limits]\nconnections = 2\n") as server:
        for port in (server.port, server.grpc_port):
            silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3)]
            assert silent[2].recv(1) == b"", "the third is one too many"
            for link in silent:
                link.close()

        def answers() -> bool:
            try:
                return ask_tls(server, trusting(tmp_path))[0] == 200
            except OSError:
                return False

        server.wait_until(answers)


def test_who_has_no_token_learns_no_names(tmp_path: Path) -> None:
    """Of a server that is not ready: neither which model is missing nor why."""
    (tmp_path / "late").mkdir()
    (tmp_path / "tokens").write_bytes(b"\xef\xbb\xbf" + SECRET.encode() + b"\r\n")  # as Windows writes it
    tables = '[models.late]\nbase_path = "late"\n[auth]\ntokens = "tokens"'
    mserve.export(builders.constant(7), tmp_path / "m", golden=0)
    with configured(tmp_path, tables, ready=False) as server:
        for path in ("/readyz", "/v2/health/ready"):
            bare = server.get(path)
            assert (bare.status, b"not ready" in bare.body, b"late" in bare.body) == (503, True, False)
            known = server.ask("GET", path, None, bearer(SECRET))
            assert (known.status, b"late" in known.body) == (503, True)
        refused = server.get("/v1/models")
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            check = "grpc.health.v1.Health/Check"
            request = message("grpc.health.v1.HealthCheckRequest")

            def health(name: str, token: str = "") -> str:
                return call(channel, check, token, request(service=name).SerializeToString())

            assert [health(name) for name in ("", "grpc.health.v1.Health")] == ["OK", "OK"]
            assert [health(name) for name in ("m", "late", "nope")] == ["UNAUTHENTICATED"] * 3
            assert [health(name, SECRET) for name in ("m", "late", "nope")] == ["OK", "OK", "NOT_FOUND"]


@pytest.mark.parametrize("spoil", ["server.pem", "server.key"])
def test_tls_files_that_do_not_fit_stop_the_start(authority: trustme.CA, tmp_path: Path, spoil: str) -> None:
    write_pair(authority, tmp_path)
    (tmp_path / spoil).write_text("not a PEM file")
    with pytest.raises(AssertionError, match="the TLS files cannot be used"), configured(tmp_path, TLS):
        pass


ECHO_CASES = [
    ("both are echoed", {"x-request-id": "a-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, True, True),
    ("an id with a space is not one", {"x-request-id": "a 1"}, False, False),
    ("a long id is not one", {"x-request-id": "a" * 129}, False, False),
    ("a trace of zeros is not one", {"traceparent": f"00-{'0' * 32}-{'b' * 16}-01"}, False, False),
    ("a trace of another form is not one", {"traceparent": "abc"}, False, False),
]


@pytest.mark.parametrize(("what", "headers", "id_echoed", "trace_echoed"), ECHO_CASES)
def test_a_request_keeps_its_identity(
    guarded: Running, what: str, headers: dict[str, str], id_echoed: bool, trace_echoed: bool
) -> None:
    answer = guarded.ask("POST", PREDICT, json.dumps(ROW).encode(), headers | bearer(SECRET))
    assert (answer.headers.get("x-request-id") == headers.get("x-request-id", "")) == id_echoed, what
    assert (answer.headers.get("traceparent") == headers.get("traceparent", "")) == trace_echoed, what
    assert answer.headers["x-request-id"], "where requests are logged each has an id"


def lines(find: Callable[[], str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in find().splitlines() if line.startswith("{")]


def test_access_log_and_request_log(tmp_path: Path) -> None:
    tables = """
[log]
format = "json"
access = "access.jsonl"
[request_log]
path = "requests.jsonl"
sample = 1.0
redact = ["x"]
"""
    with configured(tmp_path, tables) as server:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        body = json.dumps({"instances": [[41.5], [42.5]]}).encode()
        server.ask("POST", PREDICT, body, {"x-request-id": "req-1", "traceparent": trace})
        server.ask("POST", PREDICT, b'{"instances": [["99.75"]]}', {"x-request-id": "req-2"})
        access, requests = tmp_path / "access.jsonl", tmp_path / "requests.jsonl"
        server.wait_until(lambda: requests.exists() and len(lines(requests.read_text)) == 2)
        server.wait_until(
            lambda: {"req-1", "req-2"} <= {x.get("request_id") for x in lines(access.read_text)}
        )
        seen = {line.get("request_id"): line for line in lines(access.read_text)}
        assert seen["req-1"]["trace_id"] == "a" * 32
        assert (seen["req-1"]["path"], seen["req-1"]["code"], seen["req-1"]["version"]) == (
            PREDICT,
            "200",
            "1",
        )
        assert (seen["req-2"]["method"], seen["req-2"]["code"]) == ("POST", "400")
        assert seen["req-1"]["request_bytes"] == len(body)
        good, bad = lines(requests.read_text)
        assert good["inputs"] == {"x": {"redacted": True}}
        assert good["outputs"] == {"y": [[7.0], [7.0]]}
        assert set(good["ms"]) == {"total", "parse", "queue", "compute", "encode"}
        assert (good["model"], good["version"], good["protocol"]) == ("m", 1, "tfs-rest")
        assert bad["code"] == "400"
        assert "99.75" not in requests.read_text(), "an error must not tell what is to be kept out"
        assert all(line["level"] for line in lines(server.log)), "the server's own log is JSON, too"
        access.rename(tmp_path / "moved")
        server.get("/v1/models")
        server.wait_until(access.exists)


@pytest.mark.parametrize("form", ["text", "json"])
def test_names_on_the_disk_cannot_spoil_the_log(tmp_path: Path, form: str) -> None:
    """A directory's name may be no text at all, or look like lines of the log."""
    mserve.export(builders.mlp(), tmp_path / "models" / "good")
    odd = [b"\xff\xfe", b"x\n2026-01-01 00:00:00,000 INFO forged: a line", b"\x1b[2Jcleared"]
    for name in odd:
        os.makedirs(os.path.join(os.fsencode(tmp_path / "models"), name, b"1"))
    with serving(tmp_path / "models", tmp_path / "log", "--log-format", form) as server:
        server.wait_until(lambda: "is not served" in server.log())
        server.wait_until(lambda: "good version 1: available" in server.log())
        assert server.stop() == 0
    lines = (tmp_path / "log").read_text().splitlines()
    told = [json.loads(line)["message"] for line in lines] if form == "json" else lines
    assert "Traceback" not in " ".join(told)
    assert not any(line.startswith("2026-01-01") for line in told)
    assert "\x1b" not in "".join(told)
    assert any("\\udcff\\udcfe is not served" in line for line in told)
    assert any("x\\n2026-01-01" in line and "is not served" in line for line in told)
