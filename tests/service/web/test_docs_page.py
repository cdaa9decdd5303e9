"""The docs pages in a real browser, against a real server. No page may complain or ask another host."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from registry import db, revision
from registry.tables import ModelRow, VersionRow
from tests.harness.server import Server, serving
from tests.registry.signatures import SIGNATURES
from tests.service.api import pickled
from tests.service.estimators import yes_or_no

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
PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium_path, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the page's console complained of. A test takes out what it meant to cause."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """A fresh page; at the end its console must hold no complaint, and no request may have left."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)  # assertions have a patience of their own
    abroad: list[str] = []
    found = context.new_page()
    found.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    found.on("pageerror", lambda e: complaints.append(str(e)))
    found.on("request", lambda r: None if is_local(r.url) else abroad.append(r.url))
    yield found
    context.close()
    assert complaints == []
    assert abroad == []


def forgive(page: Page, complaints: list[str], status: int) -> None:
    """The browser's own line about an answer that is no success. There must be one; it may come later than
    what the page shows, and not at all once another page is loaded."""
    line = f"the server responded with a status of {status}"
    until = time.monotonic() + PATIENCE_MS / 1000
    while not any(line in c for c in complaints) and time.monotonic() < until:
        page.wait_for_timeout(20)  # lets events in
    assert any(line in c for c in complaints)
    complaints[:] = [c for c in complaints if line not in c]


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:"))


@pytest.fixture
def own(page: Page, home: Path) -> Iterator[Server]:
    """A server of two web processes, whose registry the test may change. The page leaves it before it ends:
    it asks every now and then, and would complain."""
    with serving(home, workers=2) as found:
        yield found
        page.goto("about:blank")


def enter(page: Page, server: Server, path: str = "/docs") -> None:
    page.goto(server.url + path)
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Open").click()
    expect(page.locator(".opblock").first).to_be_visible()


def summary(page: Page, text: str) -> None:
    expect(page.locator(".opblock-summary-description", has_text=text)).to_be_visible()


def execute(page: Page) -> None:
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    live = page.locator("tr.response:not([data-code])")
    expect(live.locator(".response-col_status")).to_have_text("200")


def answer(page: Page) -> str:
    return page.locator("tr.response:not([data-code]) .highlight-code code").first.inner_text()


def publish(client: httpx.Client, name: str) -> None:
    """Version 1 of a new model, which becomes champion when it is built."""
    content = pickled(yes_or_no().model)
    digest = hashlib.sha256(content).hexdigest()
    client.put(f"/v1/artifacts/{digest}", content=content).raise_for_status()
    body = {"artifact": digest, "format": "sklearn-joblib", "alias": "champion"}
    client.post(f"/v1/models/{name}/versions", json=body).raise_for_status()


def test_the_page_shows_a_models_fields_and_example_and_try_it_out_answers(
    page: Page, server: Server
) -> None:
    enter(page, server)
    summary(page, "Predict with mixed version 1 (champion, onnx)")
    page.locator(".opblock-summary", has_text="/v1/models/mixed/predict").click()
    table = page.locator(".opblock-description table")
    for field in ("age", "city", "member", "visits"):
        expect(table.get_by_role("cell", name=field, exact=True)).to_be_visible()
    expect(table).to_contain_text("one of Bern, Genève, Zürich")
    expect(page.locator(".body-param__example")).to_contain_text('"city": "Bern"')
    execute(page)
    assert '"label"' in answer(page)
    assert '"probabilities"' in answer(page)


def test_a_models_own_page_answers_too(page: Page, server: Server) -> None:
    enter(page, server, "/v1/models/price/docs")
    expect(page).to_have_title("price · Trivium")
    expect(page.locator(".opblock")).to_have_count(1)
    execute(page)
    assert '"value"' in answer(page)
    page.get_by_role("link", name="all models").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    summary(page, "Predict with forest version 1")


def test_a_refused_key_is_said_and_a_forgotten_one_is_asked_for_again(
    page: Page, server: Server, complaints: list[str]
) -> None:
    page.goto(f"{server.url}/docs")
    page.get_by_label("API key").fill("no such key")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("no key has")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("This key was refused")
    forgive(page, complaints, 401)
    enter(page, server)
    page.reload()
    expect(page.locator(".opblock").first).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.locator(".opblock")).to_have_count(0)
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_the_page_follows_what_is_promoted_and_published(page: Page, own: Server) -> None:
    enter(page, own)
    summary(page, "Predict with flag version 1 (champion, onnx)")
    with own.client() as client:
        client.put("/v1/models/flag/aliases/champion", json={"version": 2}).raise_for_status()
        summary(page, "Predict with flag version 2 (champion, onnx)")
        publish(client, "newcomer")
        summary(page, "Predict with newcomer version 1 (champion, onnx)")


def test_a_page_of_a_model_that_is_not_there_yet_shows_it_when_it_is(
    page: Page, own: Server, complaints: list[str]
) -> None:
    page.goto(f"{own.url}/v1/models/newcomer/docs")
    page.get_by_label("API key").fill(own.key)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("Not now: there is no model")).to_be_visible()
    with own.client() as client:
        publish(client, "newcomer")
    summary(page, "Predict with newcomer version 1 (champion, onnx)")
    expect(page.get_by_text("Not now")).to_be_hidden()
    forgive(page, complaints, 404)


def test_an_open_try_it_out_is_not_thrown_away(page: Page, own: Server) -> None:
    enter(page, own, "/v1/models/flag/docs")
    execute(page)
    with own.client() as client:
        client.put("/v1/models/flag/aliases/champion", json={"version": 2}).raise_for_status()
    expect(page.get_by_text("The registry has changed")).to_be_visible()
    assert '"version": 1' in answer(page)
    page.get_by_role("button", name="Show it as it is now").click()
    summary(page, "Predict with flag version 2")
    expect(page.get_by_text("The registry has changed")).to_be_hidden()


def crowd(home: Path, models: int) -> None:
    """So many models with a ready version each, as the registry would hold them."""
    engine = db.connect(f"sqlite:///{home / 'registry.db'}")
    signature = SIGNATURES["strings"].to_json()
    made = {"format": "onnx", "artifact": "0" * 64, "created_by": "test", "state": "ready", "runtime": "onnx"}
    rest = {"metrics": {}, "lineage": {}, "signature": signature, "servable": "0" * 64}
    with db.sessions(engine).begin() as session:
        for i in range(models):
            owner = ModelRow(name=f"m-{i:04}", last_number=1, created_by="test")
            session.add(owner)
            session.add(VersionRow(model=owner, number=1, description=f"number {i}", **made, **rest))
        session.flush()
        for i in range(models):
            revision.record_change(session, "model", f"m-{i:04}")
    engine.dispose()


def test_a_thousand_models_are_listed_and_found_quickly(page: Page, home: Path) -> None:
    crowd(home, 1000)
    with serving(home) as server:
        enter(page, server)
        page.reload()
        expect(page.locator("#list li").first).to_be_visible()
        expect(page.get_by_role("heading", name="1,011 models")).to_be_visible()
        page.get_by_label("Filter models").fill("m-0777")
        expect(page.locator("#list li:visible")).to_have_count(1)
        page.get_by_role("link", name="m-0777").click()
        summary(page, "Predict with m-0777 version 1 (onnx)")
        page.go_back()
        page.get_by_label("Filter models").fill("nothing like it")
        expect(page.get_by_text("No model matches.")).to_be_visible()
        page.goto("about:blank")  # or its next look for news may find no server
