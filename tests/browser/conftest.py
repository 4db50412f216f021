"""A Chromium for the tests in this folder, and pages in it whose faults fail the test.

Skipped where Playwright or a Chromium is missing; $CHROMIUM names one that is not on the path.
"""

import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vae_course.live.serving import serve

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))

from chromium import find_chromium

CHROMIUM = find_chromium()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; an own one for each file, for its event loop would disturb other tests."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (dev extra)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """For the site, whose host sends neither a policy nor a check of names."""

    def log_message(self, *arguments):
        """Nothing."""


@pytest.fixture(scope="session")
def answering():
    """A function that lets a server answer in a thread until the end, and returns its URL."""
    servers = []

    def start(server):
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def serving(answering):
    """A function that serves a folder of the site on the loopback address, and returns the URL."""
    return lambda folder: answering(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))


@pytest.fixture(scope="session")
def exploring(answering):
    """A function that serves an explorer as `vae-course explore` does, and returns the URL."""
    return lambda folder: answering(serve(folder))


@pytest.fixture
def opened(browser):
    """A function that opens a page; what is not on this machine is out of reach, and noted.

    So is every line in the console, every failed request and every error of a script. `known` is a
    pattern for what a console may say.
    """
    contexts, faults = [], []

    def route(route):
        if re.match(r"http://127\.0\.0\.1[:/]", route.request.url):
            route.continue_()
        else:
            faults.append(f"asked for {route.request.url}")
            route.abort()

    def answered(answer):
        if answer.status >= 400:
            faults.append(f"{answer.status} {answer.url}")

    def open_page(url, width=1280, height=900, known="willReadFrequently", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}")
                if not re.search(known, message.text) else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
        page.on("response", answered)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture
def serious():
    """A function: what axe-core finds on a page that is serious or critical."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (dev extra)")

    def find(page):
        found = module.Axe().run(page).response["violations"]
        return [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found
                if rule["impact"] in ("serious", "critical")]

    return find
