"""The docs pages in a browser. No page may log an error or send a request to another host."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.harness.models import pickle_model
from tests.harness.server import Server, serving
from tests.service.estimators import sign_classifier
from tests.service.model_rows import add_models

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 20_000
FLAG_DOCS = "/v1/models/flag/docs"
POLL_MS = 2000
"""The page's interval, `POLL_MS` in static/docs.js."""


class CheckedPage(NamedTuple):
    """A page, the errors and warnings in its console, and the URLs of its requests to other hosts."""

    page: Page
    errors: list[str]
    foreign_urls: list[str]

    def check(self) -> None:
        assert self.errors == []
        assert self.foreign_urls == []


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=ARGUMENTS)
        expect.set_options(timeout=TIMEOUT_MS)  # assertions have a timeout of their own
        yield browser
        browser.close()


@contextmanager
def new_page(browser: Browser) -> Iterator[CheckedPage]:
    """A page of a browser without a key."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(TIMEOUT_MS)
    context.clock.install()  # it runs as the real one, and `pass_poll_intervals` advances it
    checked = CheckedPage(context.new_page(), [], [])
    page, errors, foreign_urls = checked
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda r: None if is_local(r.url) else foreign_urls.append(r.url))
    yield checked
    context.close()


# The tests share two pages, and most of them use the page of one model: Swagger UI needs seconds to render
# the operations of all models. The fixtures check the page after each test.


@pytest.fixture(scope="module")
def opened(browser: Browser, server: Server) -> Iterator[CheckedPage]:
    """A page with the key, at first the one of the model `flag`."""
    with new_page(browser) as checked:
        open_page(checked.page, server)
        yield checked


@pytest.fixture(scope="module")
def opened_without_key(browser: Browser) -> Iterator[CheckedPage]:
    with new_page(browser) as checked:
        yield checked


@pytest.fixture
def flag_page(opened: CheckedPage, server: Server) -> Iterator[Page]:
    """The page of the model `flag`."""
    go_to(opened.page, server.url + FLAG_DOCS)
    yield opened.page
    opened.check()


@pytest.fixture
def models_page(opened: CheckedPage, server: Server) -> Iterator[Page]:
    """The page of all models."""
    go_to(opened.page, f"{server.url}/docs")
    yield opened.page
    opened.check()


@pytest.fixture
def page_without_key(opened_without_key: CheckedPage) -> Iterator[Page]:
    """A page of which the tests enter the key. At their end they remove it."""
    yield opened_without_key.page
    opened_without_key.check()


@pytest.fixture
def console_errors(opened_without_key: CheckedPage) -> list[str]:
    """The errors of `page_without_key`. A test removes those that it expects."""
    return opened_without_key.errors


def remove_error(page: Page, console_errors: list[str], status: int) -> None:
    """Remove the browser's own message about an error status, which must exist.

    It may appear later than the page's content, and not at all after another page is loaded.
    """
    line = f"the server responded with a status of {status}"
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not any(line in c for c in console_errors) and time.monotonic() < deadline:
        page.wait_for_timeout(20)  # processes events
    assert any(line in c for c in console_errors)
    console_errors[:] = [c for c in console_errors if line not in c]


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:"))


@pytest.fixture(scope="module")
def server(published_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two web processes. Each test changes other models of its registry."""
    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("docs") / "home"))
    with serving(home, workers=2) as server:
        yield server


def go_to(page: Page, url: str) -> None:
    if page.url.partition("#")[0] != url:
        page.goto(url)
    expect(page.locator(".opblock").first).to_be_visible()


def open_page(page: Page, server: Server) -> None:
    page.goto(server.url + FLAG_DOCS)
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Open").click()
    expect(page.locator(".opblock").first).to_be_visible()


def expect_summary(page: Page, text: str) -> None:
    expect(summary(page, text)).to_be_visible()


def pass_poll_intervals(page: Page, locator: Locator) -> None:
    """Let the page's clock, but not the test's, pass the interval of its polls until `locator` is visible."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not locator.is_visible() and time.monotonic() < deadline:
        page.clock.fast_forward(POLL_MS)
        page.wait_for_timeout(50)  # the response's
    expect(locator).to_be_visible()


def summary(page: Page, text: str) -> Locator:
    return page.locator(".opblock-summary-description", has_text=text)


def execute(page: Page) -> None:
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    live = page.locator("tr.response:not([data-code])")
    expect(live.locator(".response-col_status")).to_have_text("200")


def close_try_out(page: Page) -> None:
    page.locator(".try-out__btn.cancel").click()


def forget_key(page: Page) -> None:
    page.get_by_role("button", name="Remove key").click()
    expect(page.get_by_label("API key")).to_be_visible()


def response_text(page: Page) -> str:
    return page.locator("tr.response:not([data-code]) .highlight-code code").first.inner_text()


def promote_flag(server: Server, version: int) -> None:
    with server.client() as client:
        client.put("/v1/models/flag/aliases/champion", json={"version": version}).raise_for_status()


def publish(server: Server, name: str) -> None:
    """Publish version 1 of a new model, which becomes champion when it is built."""
    content = pickle_model(sign_classifier().model)
    digest = hashlib.sha256(content).hexdigest()
    body = {"artifact": digest, "format": "sklearn-joblib", "alias": "champion"}
    with server.client() as client:
        client.put(f"/v1/artifacts/{digest}", content=content).raise_for_status()
        client.post(f"/v1/models/{name}/versions", json=body).raise_for_status()


def test_a_rejected_key_is_reported_and_a_forgotten_key_prompted_for(
    page_without_key: Page, server: Server, console_errors: list[str]
) -> None:
    page = page_without_key
    page.goto(server.url + FLAG_DOCS)
    page.get_by_label("API key").fill("no such key")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("not allowed in a key")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("This key was rejected")
    remove_error(page, console_errors, 401)
    open_page(page, server)
    page.reload()
    expect(page.locator(".opblock").first).to_be_visible()
    forget_key(page)
    expect(page.locator(".opblock")).to_have_count(0)
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_the_page_of_an_unknown_model_shows_it_when_it_exists(
    page_without_key: Page, server: Server, console_errors: list[str]
) -> None:
    page = page_without_key
    page.goto(f"{server.url}/v1/models/late/docs")
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("Not available: there is no model")).to_be_visible()
    add_models(server.home, ["late"])
    pass_poll_intervals(page, summary(page, "Predict with late version 1 (onnx)"))
    expect(page.get_by_text("Not available")).to_be_hidden()
    remove_error(page, console_errors, 404)
    forget_key(page)


def test_an_open_try_it_out_is_not_replaced(flag_page: Page, server: Server) -> None:
    page = flag_page
    promote_flag(server, 1)
    pass_poll_intervals(page, summary(page, "Predict with flag version 1"))
    execute(page)
    promote_flag(server, 2)
    pass_poll_intervals(page, page.get_by_text("The registry has changed"))
    assert '"version": 1' in response_text(page)
    page.get_by_role("button", name="Update the page").click()
    expect_summary(page, "Predict with flag version 2")
    expect(page.get_by_text("The registry has changed")).to_be_hidden()


def test_a_models_own_page_executes_requests(flag_page: Page) -> None:
    page = flag_page
    expect(page).to_have_title("flag · Trivium")
    expect(page.locator(".opblock")).to_have_count(1)
    execute(page)
    assert '"label"' in response_text(page)
    page.get_by_role("link", name="all models").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    expect_summary(page, "Predict with forest version 1")


def test_the_page_follows_promotions_and_publications(models_page: Page, server: Server) -> None:
    page = models_page
    with server.client() as client:
        champion = client.get("/v1/models/flag").json()["aliases"]["champion"]
    pass_poll_intervals(page, summary(page, f"Predict with flag version {champion} (champion, onnx)"))
    other = 3 - champion
    promote_flag(server, other)
    pass_poll_intervals(page, summary(page, f"Predict with flag version {other} (champion, onnx)"))
    publish(server, "newcomer")
    pass_poll_intervals(page, summary(page, "Predict with newcomer version 1 (champion, onnx)"))


def test_the_page_shows_fields_and_an_example_and_executes_requests(models_page: Page) -> None:
    page = models_page
    expect_summary(page, "Predict with mixed version 1 (champion, onnx)")
    heading = page.locator(".opblock-summary", has_text="/v1/models/mixed/predict")
    heading.click()
    table = page.locator(".opblock-description table")
    for field in ("age", "city", "member", "visits"):
        expect(table.get_by_role("cell", name=field, exact=True)).to_be_visible()
    expect(table).to_contain_text("one of Bern, Genève, Zürich")
    expect(page.locator(".body-param__example")).to_contain_text('"city": "Bern"')
    execute(page)
    assert '"label"' in response_text(page)
    assert '"probabilities"' in response_text(page)
    close_try_out(page)
    heading.click()


def test_a_thousand_models_are_listed_and_filtered(models_page: Page, server: Server) -> None:
    page = models_page
    with server.client() as client:
        count = len(client.get("/v1/models").json()["items"])
    add_models(server.home, [f"m-{i:04}" for i in range(1000)])
    pass_poll_intervals(page, page.get_by_role("heading", name=f"{count + 1000:,} models"))
    expect(page.locator("#list li").first).to_be_visible()
    page.get_by_label("Filter models").fill("nothing like it")
    expect(page.get_by_text("No model matches.")).to_be_visible()
    page.get_by_label("Filter models").fill("m-0777")
    expect(page.locator("#list li:visible")).to_have_count(1)
    page.get_by_role("link", name="m-0777").click()
    expect_summary(page, "Predict with m-0777 version 1 (onnx)")
