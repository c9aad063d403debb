"""Clients that send nonsense, too much, or go away: one clear error each, and nothing is left behind."""

import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from base64 import b64encode
from urllib.parse import urlsplit

import psutil
import pytest
from live_server import live_server, wait_until
from media_attacks import FILES, NAMES, write_attacks

from audiox_diffusers.cli import main
from audiox_diffusers.serving.limits import Limits

LIMITS = Limits(max_queue=4, max_upload_bytes=2**20, max_length_s=20, max_steps=1000, upload_timeout_s=1.0)
BODY = {"input": "rain", "audio_length": 0.5, "num_inference_steps": 1}
ENDLESS = {"input": "rain", "num_inference_steps": 1000}
HUGE = 10**400


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    with patch.context(), live_server(tmp_path_factory.mktemp("server"), LIMITS) as running:
        running.client.post("/v1/audio/generate", json=BODY)
        yield running
        assert running.client.post("/v1/audio/generate", json=BODY).status_code == 200
    patch.undo()


@pytest.fixture(autouse=True)
def nothing_left(request):
    """Check that a test leaves no files, descriptors or threads behind."""
    if "server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("server")
    process = psutil.Process()
    before, temporary = process.num_fds(), set(os.listdir(tempfile.gettempdir()))
    threads = {thread for thread in threading.enumerate() if "AnyIO" not in thread.name}
    yield
    wait_until(lambda: not list(server.folder.iterdir()))
    wait_until(lambda: process.num_fds() <= before)
    assert set(os.listdir(tempfile.gettempdir())) <= temporary
    wait_until(lambda: {t for t in threading.enumerate() if "AnyIO" not in t.name} <= threads)


def check_error(response, *statuses: int) -> dict:
    """Check that a response is one clear error, and return it."""
    assert response.status_code in statuses, (response.status_code, response.text)
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 400
    assert "Traceback" not in error["message"] and "/server0" not in error["message"]
    assert error["type"] and error["code"]
    return error


def png_bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zip_bomb() -> bytes:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb", bytes(10**8))
        file.seek(0)
        return file.read()


def long_wav(seconds: int) -> bytes:
    """Return a WAV file at 1 kHz."""
    data = bytes(2 * 1000 * seconds)
    form = struct.pack("<HHIIHH", 1, 1, 1000, 2000, 2, 16)
    return struct.pack("<4sI8sI16s4sI", b"RIFF", 36 + len(data), b"WAVEfmt ", 16, form, b"data", len(data)) + data


BAD_FIELDS = {
    "input": [5, ["rain"], {"a": 1}, True, "x" * 5000, "\ud800"],
    "model": ["../../etc", "http://127.0.0.1/model", 5, "x" * 10**5],
    "negative_prompt": [5, "y" * 5000, "\udfff"],
    "audio_length": [0, -1, HUGE, 1e308, "NaN", "Infinity", "ten", True, [1], 86401],
    "num_inference_steps": [0, -5, 1.5, HUGE, "many", True, 10**6],
    "guidance_scale": ["NaN", "-inf", 1e308, HUGE, {}, True, [3], {"smell": 3}, {"text": "x"}, {"video": 3}, "text=x"],
    "guidance_interval": [[0.8, 0.2], [0, 2], "0.5", [0.1], {"low": 0}, True],
    "guider": ["apq", "apg:eta=x", 5, {}, True],
    "negative_video": ["clip.mp4", "data:video/mp4;base64,"],
    "negative_audio": [5, "data:audio/wav;base64,aGVsbG8="],
    "guidance_rescale": [-0.1, 1.1, "NaN"],
    "seed": [-1, 2**64, HUGE, 0.5, "x"],
    "n": [0, 2, HUGE],
    "video": ["clip.mp4", 5, "data:video/mp4;base64,!!!", "data:,x", "data:video/mp4;base64,"],
    "image": [["x"], "data:image/png;base64,aGVsbG8=", "data:image/png,hello"],
    "inpaint_spans": ["2-1", [[0]], [["a", "b"]], [[0, "NaN"]], "x" * 100, 5],
    "extend_by": ["NaN", 0, HUGE],
    "strength": [0, 2, "NaN"],
    "lora": ["../adapter", 5, {"x": "NaN"}, ["a"]],
    "response_format": ["exe", "../../x", 5, "mp4"],
    "stream": ["perhaps", 5],
    "stream_format": ["sse"],
    "speed": [2, "NaN"],
    "audio_start": [1, "x"],
    "preview_every": [0, HUGE],
    "normalize": ["perhaps", []],
    "path": ["/etc/passwd"],
    "__class__": ["x"],
    "\ud800": [1],
}


@pytest.mark.parametrize("name", BAD_FIELDS, ids=ascii)
def test_wrong_values_name_their_field(server, name):
    for value in BAD_FIELDS[name]:
        response = server.client.post(
            "/v1/audio/generate",
            content=json.dumps({**BODY, name: value}),
            headers={"Content-Type": "application/json"},
        )
        error = check_error(response, 404 if name == "model" and isinstance(value, str) else 400)
        reported = error["param"] or error["message"]
        assert name.encode("unicode_escape").decode() in reported or error["param"] == "audio", (value, error)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": None}, "input", "required; describe the sound, or give a video, an image or audio"),
        ({"input": " \n"}, "input", r"is blank, got ' \n'; describe the sound, or give a video, an image or audio"),
        ({"input": "x" * 10_000}, "input", "must have at most 4096 characters, got 10000"),
        ({"input": 5}, "input", "must be text, got 5"),
        ({"prompt": "rain"}, "prompt", "is given under two names, got 'rain'"),
        ({"audio_lenght": 3}, "audio_lenght", "unknown field; did you mean audio_length?"),
        ({"negativ_prompt": "a"}, "negativ_prompt", "unknown field; did you mean negative_prompt?"),
        ({"zzz": 3}, "zzz", "unknown field"),
        ({"audio_length": -3}, "audio_length", "must be above 0, got -3"),
        ({"audio_length": "ten"}, "audio_length", "must be a number, got 'ten'"),
        ({"audio_length": 21}, "audio_length", "must be at most 20 s, got 21 s"),
        ({"num_inference_steps": 1.5}, "num_inference_steps", "must be a whole number, got 1.5"),
        ({"num_inference_steps": 1001}, "num_inference_steps", "must be at most 1000, got 1001"),
        ({"seed": 2**64}, "seed", f"must be at most {2**64 - 1}, got {2**64}"),
        ({"stream": "perhaps"}, "stream", "must be true or false, got 'perhaps'"),
        ({"inpaint_spans": [[0, "a"]]}, "inpaint_spans", "must be a number, got 'a'"),
        ({"inpaint_spans": [[0]]}, "inpaint_spans", "must be a list of pairs of start and end, got [0]"),
        ({"lora": 5}, "lora", "must be a name, or names with scales, got 5"),
        ({"response_format": "{0}"}, "response_format", "must be 'wav', 'pcm', 'flac', 'mp3', 'aac', 'opus' or 'mp4', got '{0}'"),
    ],
)  # fmt: skip
def test_errors_say_what_was_given_and_what_is_allowed(server, fields, param, message):
    error = check_error(server.client.post("/v1/audio/generate", json={**BODY, "audio_length": None, **fields}), 400)
    assert (error["param"], error["message"]) == (param, f"{param}: {message}")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000, b'{"seed": NaN}',
        b'{"audio_length": Infinity}', b'{"input": "\\ud800"}', b'{"seed": ' + b"9" * 10_000 + b"}", b"\0" * 1000,
        b"{}", b'{"input": "rain", "video": "x", "image": "y"}', zlib.compress(bytes(10**8)),
    ],
    ids=range(17),
)  # fmt: skip
def test_bodies_that_are_no_request(server, body):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path in ("/v1/audio/generate", "/v1/audio/speech", "/v1/chat/completions", "/hf", "/v1/jobs"):
        check_error(server.client.post(path, content=body, headers=headers), 400)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x"]
)
def test_other_types_of_body(server, kind):
    response = server.client.post("/v1/audio/generate", content=b"input=rain", headers={"Content-Type": kind})
    check_error(response, 415)


def test_routes_and_methods_that_do_not_exist(server):
    for method, path in [
        ("GET", "/v1/nothing"), ("GET", "/v1/audio/generate"), ("PUT", "/v1/jobs"), ("GET", "/v1/jobs/job-1"),
        ("DELETE", "/v1/jobs/job-1"), ("GET", "/v1/jobs/job-1/content"), ("GET", "/v1/jobs/..%2f..%2fetc%2fpasswd"),
        ("GET", "/v1/models/..%2f..%2fetc"),
    ]:  # fmt: skip
        check_error(server.client.request(method, path), 404)
    assert server.client.get("/../../etc/passwd").status_code == 404
    for index in ("x", "-1", "1.5"):
        error = check_error(server.client.get(f"/v1/jobs/job-1/content?index={index}"), 400)
        assert error["param"] == "index" and error["message"].startswith("index: ")


@pytest.mark.parametrize(
    "form",
    [
        b"", b"--x", b"--x--\r\n", b"--x\r\n\r\nno headers\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="input"\r\n\r\nnever ends',
        b'--x\r\nContent-Disposition: form-data; name="input"\r\n\r\nrain\r\n' * 100 + b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nrain\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="input"; filename="a"\r\n\r\nrain\r\n--x--\r\n',
        b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n--x--\r\n",
    ],
    ids=range(10),
)  # fmt: skip
def test_forms_that_are_no_request(server, form):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    check_error(server.client.post("/v1/audio/generate", content=form, headers=headers), 400)


def test_random_bytes(server):
    random.seed(0)
    for _ in range(20):
        data = random.randbytes(random.randrange(1, 2000))
        check_error(server.client.post("/v1/audio/generate", data={"input": "rain"}, files={"audio": data}), 400)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        check_error(server.client.post("/v1/audio/generate", content=b"--x\r\n" + data, headers=headers), 400)


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    """Names and files that lead elsewhere, and a listener that nobody must reach."""
    folder = tmp_path_factory.mktemp("attacks")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield write_attacks(folder, listener.getsockname()[1])
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not (folder / "started").exists()


@pytest.mark.parametrize("field", ["video", "image", "audio"])
def test_urls_and_paths_are_never_opened(server, attacks, field):
    secret, names, _ = attacks
    for name in [*(names[name] for name in NAMES if not name.startswith("data:")), str(secret), "../secret.mp4", "-"]:
        for send in ({"json": {**BODY, field: name}}, {"data": {"input": "rain", field: name}, "files": {}}):
            if "files" in send:  # a form with a text part of that name
                send = {"files": {field: (None, name), "input": (None, "rain")}}
            error = check_error(server.client.post("/v1/audio/generate", **send), 400)
            assert error["param"] == field and "URLs and paths are never opened" in error["message"]


@pytest.mark.parametrize("field", ["video", "image", "audio"])
def test_playlists_and_scripts_lead_nowhere(server, attacks, field):
    _, _, files = attacks
    for name in FILES:
        upload = {field: (f"../../{name}", files[name].read_bytes())}
        error = check_error(server.client.post("/v1/audio/generate", data={"input": "rain"}, files=upload), 400)
        assert error["param"] == field


@pytest.mark.parametrize("edit", [{}, {"strength": "0.5"}], ids=["prompt", "edit"])
def test_bombs(server, edit):
    bombs = [
        ("image", png_bomb(60_000, 60_000)), ("image", png_bomb(2**31 - 1, 1)), ("image", zip_bomb()),
        ("audio", zip_bomb()), ("video", png_bomb(60_000, 60_000)), ("video", zip_bomb()),
    ]  # fmt: skip
    for field, data in [*bombs, *([("audio", long_wav(400))] if edit else [])]:
        response = server.client.post("/v1/audio/generate", data={"input": "rain", **edit}, files={field: data})
        error = check_error(response, 400)
        assert error["param"] in (field, "audio")


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_large_uploads_are_refused_while_they_arrive(server, declared):
    """Both the size in the header and the bytes that arrive count."""
    size, chunk = 2 * 2**20, bytes(2**16)
    chunks = (chunk for _ in range(size // len(chunk)))
    headers = {"Content-Type": "application/json", **({"Content-Length": str(size)} if declared else {})}
    response = server.client.post("/v1/audio/generate", content=chunks, headers=headers)
    assert check_error(response, 413)["message"] == "the request must have at most 1 MB"


def test_two_gigabytes_are_refused_before_they_are_sent(server):
    """As by curl, which asks first."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    connection.putrequest("POST", "/v1/jobs")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", 2**31), ("Expect", "100-continue")):
        connection.putheader(name, str(value))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413 and "at most" in json.loads(response.read())["error"]["message"]
    connection.close()


def test_a_slow_upload_times_out(server):
    with connect(server) as connection:
        connection.sendall(head("/v1/jobs", 1000) + b"{")
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 408") and b"the upload took more than 1 s" in answer


def head(path: str, length: int, kind: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def connect(server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def depth(server) -> float:
    text = server.engine.describe_metrics()
    return float(next(line for line in text.splitlines() if line.startswith("audiox_queue_depth ")).split()[1])


def reset(connection: socket.socket) -> None:
    """Close a connection as the kernel does for a killed client that has not read everything."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_clients_that_vanish_while_they_upload(server):
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        for end in (reset, socket.socket.close):
            connection = connect(server)
            start = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
            connection.sendall(head("/v1/audio/generate", 10**6, kind) + start + bytes(500_000))
            wait_until(lambda: depth(server) == 1)
            end(connection)
            wait_until(lambda: depth(server) == 0)


@pytest.mark.parametrize("path", ["/v1/audio/generate", "/v1/audio/speech", "/v1/chat/completions", "/hf"])
@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_a_client_that_vanishes_cancels_its_job(server, path, end):
    body = {
        "/v1/chat/completions": {"messages": [{"content": "rain"}], "num_inference_steps": 1000},
        "/hf": {"inputs": "rain", "parameters": {"num_inference_steps": 1000}},
    }.get(path, ENDLESS)
    data = json.dumps(body).encode()
    connection = connect(server)
    connection.sendall(head(path, len(data)) + data)
    wait_until(lambda: server.engine._running)
    (job,) = server.engine._running
    end(connection)
    assert job.wait(5) and job.status == "cancelled"


def test_clients_that_vanish_while_they_receive(server):
    for body in ({**BODY, "audio_length": 20, "stream": True}, {**BODY, "audio_length": 20, "response_format": "wav"}):
        data = json.dumps(body).encode()
        connection = connect(server)
        connection.sendall(head("/v1/audio/generate", len(data)) + data)
        assert connection.recv(1000)
        reset(connection)
        wait_until(lambda: not list(server.folder.iterdir()))


def test_a_client_that_leaves_the_events_does_not_cancel_its_job(server):
    job = server.client.post("/v1/jobs", json={**BODY, "num_inference_steps": 30}).json()
    with server.client.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        assert next(response.iter_lines()) == "event: progress"
    assert server.engine.get(job["id"]).wait(20)
    assert server.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded"
    server.client.delete(f"/v1/jobs/{job['id']}")


def test_a_full_queue(server):
    jobs = [server.client.post("/v1/jobs", json=ENDLESS)]
    wait_until(lambda: server.engine._running)
    jobs += [server.client.post("/v1/jobs", json=ENDLESS) for _ in range(LIMITS.max_queue)]
    assert [job.status_code for job in jobs] == [202] * 5
    for path in ("/v1/jobs", "/v1/audio/generate", "/v1/audio/speech", "/v1/chat/completions", "/hf"):
        response = server.client.post(path, json=BODY)
        check_error(response, 429)
        assert int(response.headers["retry-after"]) >= 1
    positions = [server.client.get(f"/v1/jobs/{job.json()['id']}").json()["position"] for job in jobs]
    assert positions == [None, 0, 1, 2, 3]
    for job in jobs:
        server.client.delete(f"/v1/jobs/{job.json()['id']}")


# Tokens, and pages of other sites


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory):
    with live_server(tmp_path_factory.mktemp("closed"), token="the-token") as running:
        del running.client.headers["Authorization"]
        yield running


@pytest.mark.parametrize(
    "header",
    [None, "Bearer", "Bearer wrong", "Bearer the-token2", "the-token", "Basic the-token", "Basic !!!", "Bearer \xe9"],
)
def test_wrong_tokens(closed_server, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in (("POST", "/v1/jobs"), ("GET", "/docs"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/x")):
        response = closed_server.client.request(method, path, headers=headers)
        check_error(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert closed_server.client.get("/health").status_code == closed_server.client.get("/ready").status_code == 200


def test_tokens(closed_server):
    client = closed_server.client
    assert client.get("/v1/models", headers={"Authorization": "Bearer the-token"}).status_code == 200
    # A browser is asked for a password.
    response = client.get("/", headers={"Accept": "text/html"})
    assert response.status_code == 401 and response.headers["www-authenticate"].startswith("Basic")
    password = {"Authorization": "Basic " + b64encode(b"anyone:the-token").decode()}
    assert client.get("/", headers=password).status_code == 200
    foreign = {**password, "Origin": "http://example.com"}
    check_error(client.post("/v1/jobs", json=BODY, headers=foreign), 403)


def test_pages_of_other_sites_cannot_use_an_open_server(server):
    check_error(server.client.post("/v1/jobs", json=BODY, headers={"Origin": "http://example.com"}), 403)
    check_error(server.client.get("/v1/models", headers={"Host": "rebound.example.com"}), 403)
    assert server.client.get("/v1/models", headers={"Origin": server.url}).status_code == 200


# A server of its own


def start(*options: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "audiox_diffusers", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()[-1]


@pytest.mark.slow
def test_sigterm_under_load(tmp_path, monkeypatch):
    """What runs is finished, what waits gets an error, nothing is left, and the process ends."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process, url = start("--max-batch", "1")
    statuses: list[int] = []
    address = urlsplit(url)

    def ask() -> None:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        body = json.dumps({"input": "rain", "audio_length": 0.5, "num_inference_steps": 20})
        connection.request("POST", "/v1/audio/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        statuses.append(response.status)
        assert data.startswith(b"RIFF") or json.loads(data)["error"]["code"] == "shutting_down"
        connection.close()

    clients = [threading.Thread(target=ask) for _ in range(6)]
    for client in clients:
        client.start()
    wait_until(lambda: 200 in statuses, 60)
    # A connection that would stay open, such as that of a browser.
    lasting = socket.create_connection((address.hostname, address.port))
    lasting.sendall(head("/v1/jobs", 1000))
    begin = time.monotonic()
    process.terminate()
    _, errors = process.communicate(timeout=40)
    for client in clients:
        client.join(10)
    assert process.returncode == 128 + 15 and time.monotonic() - begin < 30
    assert errors.splitlines()[-1] == "audiox: terminated"
    lasting.close()
    assert len(statuses) == 6 and set(statuses) == {200, 503}
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "audiox_diffusers.commands.server", raising=False)
    assert main(["serve", "--port", "0"]) == 2
    assert "audiox serve needs `pip install audiox-diffusers[serve]`: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "damaged"], "--model damaged: "),
        (
            ["--max-memory", "0.001", "--precise"],
            "model audiox-tiny: its weights take 0.039 GB, more than --max-memory allows (0.001 GB)",
        ),
    ],
)
def test_a_first_model_that_cannot_be_loaded_ends_the_server(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model_index.json").write_text(json.dumps({"_class_name": "AudioXPipeline"}))
    assert main(["serve", "--port", "0", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"audiox: error: {message}")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--port", "PORT"], "--port PORT: cannot listen on 127.0.0.1 (Address already in use"),
        (
            ["--host", "0.0.0.0"],
            "--host 0.0.0.0: other machines could use the server; give a --token, or AUDIOX_TOKEN",
        ),
        (["--host", "no.such.host.invalid", "--token", "x"], "--host no.such.host.invalid: "),
        (["--token", "two words"], "--token: must be printable ASCII characters without spaces"),
        (["--host", "h" * 100, "--token", "x"], f"--host {'h' * 100}: not a host name"),
        (["--model", "audiox-tiny", "audiox-tiny"], "--model: two have the same name, audiox-tiny"),
        (["--lora", "missing"], "--lora missing: no such file or folder"),
        (["--max-queue", "0"], "argument --max-queue: must be a whole number from 1 to 100000, got '0'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_options_that_cannot_work_are_one_error(server, capsys, options, message):
    port = str(urlsplit(server.url).port)
    assert main(["serve", "--port", "0", *(option.replace("PORT", port) for option in options)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.splitlines()[-1].startswith(
        f"audiox: error: {message.replace('PORT', port)}"
    )
