"""The explorer's server, spoken to in raw bytes: who is answered, what is handed out, and when it hangs up."""

import http.client
import json
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_course.engine.cli import main
from vae_course.engine.families import FastCVAE
from vae_course.engine.recipes import SHORT
from vae_course.engine.run_folder import write_settings
from vae_course.engine.runs import save_run
from vae_course.further import other_data
from vae_course.further.larger import ResidualVAE
from vae_course.further.own_images import look_at
from vae_course.live import serving
from vae_course.live.explorer import build_explorer
from vae_course.live.serving import POLICY, explore_run, serve
from vae_course.manifold import encode_images

PATIENCE = 60  # seconds until the server counts as hung; no test waits as long on purpose


@pytest.fixture(scope="module")
def folder(pretrained, x_test, mnist, tmp_path_factory):
    return build_explorer(*pretrained, x_test[:50], mnist[1][1][:50], tmp_path_factory.mktemp("explorer") / "page")


@pytest.fixture
def started(folder, monkeypatch):
    """A function that starts a server with other settings; what it could not handle fails the test."""
    servers, faults = [], []

    def start(**changes):
        server = serve(folder)
        vars(server).update(changes)
        handle = server.handle_error
        monkeypatch.setattr(server, "handle_error", lambda line, address: (
            faults.append(serving.sys.exc_info()[1]), handle(line, address)))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    assert not [fault for fault in faults if not isinstance(fault, ConnectionError)]


@pytest.fixture
def server(started):
    return started()


def connect(server):
    return socket.create_connection(server.server_address, timeout=PATIENCE)


def rest(line):
    """All that still comes, until the server hangs up; it may do so before it has read all that was sent."""
    parts = []
    try:
        while part := line.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def send(server, content):
    with connect(server) as line:
        try:
            line.sendall(content)
            line.shutdown(socket.SHUT_WR)  # nothing more will come
        except OSError:  # it has hung up already
            pass
        return rest(line)


def status(answer):
    """The number of an answer; a request without a version is answered without a line of status."""
    found = re.match(rb"HTTP/1.0 (\d+) ", answer) or re.search(rb"Error code: (\d+)", answer)
    assert found or not answer
    return int(found.group(1)) if found else None


def ask(server, path, method="GET", host="localhost"):
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    connection.request(method, path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def wait_for_threads():
    """Wait until no connection has a thread any more."""
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(PATIENCE)
            assert not thread.is_alive()


# --- what is handed out


@pytest.mark.parametrize(("name", "kind"), [
    ("", "text/html; charset=utf-8"), ("explorer.js", "text/javascript"),
    ("explorer.css", "text/css"), ("explorer.json", "application/json"),
    ("runtime/tfjs-backend-wasm-simd.wasm", "application/wasm"),
])
def test_files_come_with_their_types(server, folder, name, kind):
    got, headers, body = ask(server, "/" + name)
    assert (got, headers["Content-Type"]) == (200, kind)
    assert body == (folder / (name or "index.html")).read_bytes()
    got, headers, body = ask(server, "/" + name, "HEAD")
    assert (got, headers["Content-Type"], body) == (200, kind, b"")


@pytest.mark.parametrize("path", [
    "/../secret.txt", "/%2e%2e/secret.txt", "/runtime/../../secret.txt", "/..%2fsecret.txt", "/..\\secret.txt",
    "//secret.txt", "/../page/../secret.txt", "/%00", "/index.html%00", "/%ff%fe", "/%ed%a0%80", "/" + "a" * 5000,
    "/runtime/", "/runtime/../runtime/", "http://localhost/explorer.json", "/index.html/", "*", "/[", "//[::",
])
def test_nothing_else_is_handed_out_and_no_folder_is_listed(server, folder, path):
    (folder.parent / "secret.txt").write_text("secret")
    answer = send(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status(answer) == 404
    assert b"secret\n" not in answer and not answer.endswith(b"secret") and b"tfjs-backend" not in answer


def test_a_folder_without_its_slash_leads_to_no_list(server):
    got, headers, _ = ask(server, "/runtime")
    assert got in (301, 404) and headers.get("Location", "/").startswith("/")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "X"])
def test_methods_other_than_get_and_head_are_refused(server, folder, method):
    before = sorted(folder.rglob("*"))
    assert ask(server, "/explorer.json", method)[0] == 501
    assert sorted(folder.rglob("*")) == before


# --- who is answered


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "[::1]:{}", "localhost", "LocalHost:{}",
                                  "127.0.0.1:9000"])  # the last: through a tunnel
def test_own_names_are_answered(server, folder, host):
    assert ask(server, "/explorer.json", host=host.format(server.server_port))[0] == 200


@pytest.mark.parametrize("host", [
    "evil.example:{}", "evil.example", "127.0.0.1.evil.example:{}", "localhost.evil.example", "evil.example:localhost",
    "127.0.0.2:{}", "0.0.0.0:{}", "evil.example@localhost", "localhost@evil.example", "localhost:x", "[::1", ":", "",
])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_foreign_names_are_refused(server, host, method):
    got, _, body = ask(server, "/explorer.json", method, host.format(server.server_port))
    assert got == 421
    assert b"image_shape" not in body


@pytest.mark.parametrize("lines", [b"", b"Host: localhost\r\nHost: localhost\r\n", b"X-Host: localhost\r\n",
                                   b"Host: evil.example\r\nHost: localhost\r\n",
                                   b"Host: localhost\r\nHost: evil.example\r\n"])
def test_no_name_and_two_names_are_refused(server, lines):
    for version in (b"1.0", b"1.1"):
        answer = send(server, b"GET /explorer.json HTTP/" + version + b"\r\n" + lines + b"\r\n")
        assert status(answer) == 421 and b"image_shape" not in answer
    assert b"image_shape" not in send(server, b"GET /explorer.json\r\n" + lines + b"\r\n")


def test_only_the_loopback_address_listens(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(("path", "host"), [("/", "localhost"), ("/explorer.js", "localhost"), ("/none", "localhost"),
                                            ("/", "evil.example")])
def test_each_answer_has_the_policy(server, path, host):
    _, headers, _ = ask(server, path, host=host)
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_the_page_has_the_same_policy_where_another_server_hands_it_out(folder):
    (policy,) = re.findall(r'"Content-Security-Policy" content="([^"]*)"', (folder / "index.html").read_text("utf-8"))
    assert POLICY == policy + "; frame-ancestors 'none'"  # which a page cannot say of itself


# --- malformed, huge, slow, many


@pytest.mark.parametrize(("content", "expected"), [
    (b"", None), (b"\r\n", None), (b"\0" * 1000, 400), (b"GET\r\n\r\n", 400), (b"GET / HTTP/1.1 x\r\n\r\n", 400),
    (b"GET / FTP/1.1\r\n\r\n", 400), (b"GET / HTTP/x.y\r\n\r\n", 400), (b"GET / HTTP/2.0\r\n\r\n", 505),
    (b"GET / HTTP/" + b"9" * 5000 + b".1\r\n\r\n", 400),
    # One byte more than is read. What is left unread when the server hangs up can cost the answer.
    (b"GET /".ljust(65_537, b"a"), 414), (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X:".ljust(65_537, b"a"), 431),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400),  # a browser that was told https
])
def test_malformed_and_huge_requests_are_answered_in_one_line(server, content, expected):
    assert status(send(server, content)) == expected
    assert ask(server, "/")[0] == 200  # and the next reader is served


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"HEAD /%"]),
       noise=st.binary(max_size=200), end=st.sampled_from([b"", b"\r\n\r\n", b" HTTP/1.1\r\nHost: localhost\r\n\r\n"]))
def test_noise_is_no_error_of_the_server(server, start, noise, end):
    send(server, start + noise + end)  # `started` looks for what it could not handle


@pytest.mark.parametrize("begin", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_whoever_waits_is_cut_off_and_the_threads_end(started, begin):
    server = started(patience=0.05)
    lines = [connect(server) for _ in range(20)]
    for line in lines:
        line.sendall(begin)
    for line in lines:  # each comes to its end because the server hangs up
        assert status(rest(line)) in (None, 400, 421)
        line.close()
    wait_for_threads()
    assert not server.deadlines


def test_whoever_sends_a_byte_now_and_then_is_cut_off_too(started):
    with connect(started(patience=0.05)) as line:
        line.settimeout(0.005)  # between two bytes
        for _ in range(60_000):  # not yet too long a line, which would be refused
            try:
                line.sendall(b"a")
                assert status(line.recv(1000)) in (None, 400)
                return
            except TimeoutError:
                pass
            except ConnectionError:
                return
    raise AssertionError("it was never cut off")


def test_whoever_stops_reading_is_cut_off_too(started, folder):
    big = folder / "big.bin"
    big.write_bytes(bytes(50_000_000))  # more than the buffers hold
    try:
        with connect(started(patience=0.05)) as line:
            line.sendall(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert line.recv(1) == b"H"
            wait_for_threads()
            assert len(rest(line)) < 50_000_000
    finally:
        big.unlink()


def test_no_more_than_so_many_at_a_time(started):
    server = started(most=3, patience=3600)
    lines = [connect(server) for _ in range(3)]
    assert send(server, b"") == b""  # the fourth: closed at once, or refused
    with connect(server) as fourth:
        assert rest(fourth) == b""
    for line in lines:
        line.sendall(b"GET /explorer.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(rest(line)) == 200
        line.close()


def test_two_hundred_at_once(server, folder):
    expected, found, together = (folder / "explorer.bin").read_bytes(), [], threading.Barrier(200)

    def load():
        together.wait(PATIENCE)
        found.append(ask(server, "/explorer.bin")[::2])

    threads = [threading.Thread(target=load) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(200, expected)] * 200
    assert server.request_queue_size >= 200 and server.most >= 200


def test_a_reader_who_leaves_is_no_traceback(started, folder, capfd):
    server = started()
    for _ in range(5):
        with connect(server) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves with a reset
            line.sendall(b"GET /runtime/tfjs-backend-wasm.wasm HTTP/1.1\r\nHost: localhost\r\n\r\n")
            line.recv(1)
    wait_for_threads()
    assert "Traceback" not in capfd.readouterr().err


# --- the whole


def test_a_taken_port_and_a_missing_page(server, folder, tmp_path):
    with pytest.raises(OSError, match=rf"port {server.server_port}.*Choose another port"):
        serve(folder, server.server_port)
    with pytest.raises(FileNotFoundError, match="build_explorer"):
        serve(tmp_path)
    for port, error in ((-1, ValueError), (65536, ValueError), ("80", TypeError)):
        with pytest.raises(error, match="port"):
            serve(folder, port)


def test_a_port_can_be_chosen(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(folder, port) as server:
        assert server.server_port == port


def save_small_run(folder, images, labels=None, likelihood="discretized_logistic", **settings):
    """An untrained model of images in a file, as a folder of a run; the test images, prepared."""
    np.savez(folder / "images.npz", x_train=images, x_test=images[::-1],
             **({} if labels is None else {"y_train": labels, "y_test": labels[::-1]}))
    recipe = replace(SHORT, filters=(2, 3), likelihood=likelihood)
    data = str(folder / "images.npz")
    write_settings(folder / "run", recipe, data, None, look_at(recipe, data))
    model = FastCVAE(2, (2, 3), 0, images.shape[1:], likelihood)
    save_run(folder / "run", "cvae", model, recipe, [{"test_elbo": -200.0}])
    return model, (images[::-1] / 255).astype(np.float32)


@pytest.fixture
def explored(monkeypatch):
    """A function: the page of a run and its arrays, as they lie there while the server waits for Ctrl-C."""
    def explore(run, **options):
        seen = {}

        def wait(server):
            seen["folder"] = folder = Path(server.RequestHandlerClass.keywords["directory"])
            seen["page"] = json.loads((folder / "explorer.json").read_text(encoding="utf-8"))
            seen["floats"] = np.fromfile(folder / "explorer.bin", "<f4")
            raise KeyboardInterrupt

        monkeypatch.setattr(serving.PageServer, "serve_forever", wait)
        monkeypatch.setattr(serving.webbrowser, "open", lambda url: seen.update(url=url))
        explore_run(run, **options)
        assert not seen["folder"].exists()
        start = 0
        for array in seen["page"]["arrays"]:
            size = int(np.prod(array["shape"]))
            seen[array["name"]] = seen["floats"][start:start + size].reshape(array["shape"])
            start += size
        return seen

    return explore


def test_explore_run_shows_the_runs_own_images(explored, tmp_path, rng, capsys):
    images = rng.integers(0, 256, (20, 9, 12, 3), dtype=np.uint8)
    model, x = save_small_run(tmp_path, images, np.arange(20) % 4)
    seen = explored(tmp_path / "run")
    assert seen["url"] in capsys.readouterr().out
    assert "−200.00 nats" in seen["page"]["about"] and "20 dots" in seen["page"]["about"]
    assert seen["page"]["image_shape"] == [9, 12, 3] and seen["page"]["likelihood"] == "discretized_logistic"
    np.testing.assert_allclose(seen["codes"], encode_images(model, x)[0], atol=1e-5)
    assert seen["labels"].tolist() == (np.arange(20) % 4)[::-1].tolist()
    assert "url" not in explored(tmp_path / "run", browser=False)


def test_explore_run_without_labels(explored, tmp_path, rng):
    save_small_run(tmp_path, rng.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8), likelihood="bernoulli")
    seen = explored(tmp_path / "run")
    assert seen["page"]["classes"] == [] and seen["codes"].shape == (9, 2)


def test_explore_run_bears_the_names_of_classes(explored, tmp_path, monkeypatch):
    """A run of Fashion-MNIST once showed digits."""
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    halves = (images, np.arange(30) % 10), (images[:10], np.arange(10)[::-1])
    monkeypatch.setitem(other_data.DATASETS, "fashion_mnist", lambda: halves)
    write_settings(tmp_path, SHORT, "fashion_mnist", None, look_at(SHORT, "fashion_mnist"))
    model = FastCVAE(filters=(2, 3), seed=0)
    save_run(tmp_path, "cvae", model, SHORT, [])
    seen = explored(tmp_path)
    assert [entry["name"] for entry in seen["page"]["classes"]] == list(other_data.CLASSES["fashion_mnist"])
    np.testing.assert_allclose(seen["codes"], encode_images(model, np.float32(images[:10, ..., None] > 127))[0], atol=1e-5)
    assert seen["labels"].tolist() == list(range(9, -1, -1))


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda folder: (folder / "images.npz").unlink(), "there is no .*images.npz"),
    (lambda folder: (folder / "images.npz").write_bytes(b"else"), "not what the run began with"),
    (lambda folder: (folder / "run" / "settings.json").unlink(), "settings.json"),
    (lambda folder: (folder / "run" / "settings.json").write_text("{}"), "settings.json is damaged"),
])
def test_explore_run_says_why_there_are_no_dots(explored, tmp_path, rng, capsys, spoil, reason):
    save_small_run(tmp_path, rng.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8))
    spoil(tmp_path)
    seen = explored(tmp_path / "run")
    assert seen["codes"].shape == (0, 2) and "no dots" in seen["page"]["about"]
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert re.search(f"no dots, as the run's images cannot be read: .*{reason}", first)
    assert "http" in second


def test_explore_run_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no .*cvae.keras"):
        explore_run(tmp_path)


@pytest.mark.parametrize("make", [lambda: ResidualVAE(width=8, blocks=1, seed=0), lambda: FastCVAE(3, (2, 3), 0)])
def test_the_command_refuses_in_one_line_what_does_not_fit(make, tmp_path):
    save_run(tmp_path, "cvae", make(), SHORT, [])
    result = CliRunner().invoke(main, ["explore", str(tmp_path), "--no-browser"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert re.search("^Error: (cannot export the layer|a plane of codes)", result.output, flags=re.M)
