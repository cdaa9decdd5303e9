// Prompts for an API key once, renders openapi.json with Swagger UI, and updates the page when it changes.
"use strict";

const KEY = "trivium.key";
const POLL_MS = 2000;

const at = (id) => document.getElementById(id);
const show = (id, visible) => { at(id).hidden = !visible; };
// /docs -> /openapi.json, /v1/models/NAME/docs -> /v1/models/NAME/openapi.json
const address = location.pathname.replace(/\/docs\/?$/, "/openapi.json");
const model = decodeURIComponent((location.pathname.match(/\/models\/([^/]+)\/docs\/?$/) || [])[1] || "");

let etag = null;     // of the rendered document
let rendered = "";   // its text: not every change of the registry changes the document
let timer = null;
let generation = 0;  // incremented by every fetch and by "Remove key": outdated responses are ignored

class KeyRejected extends Error {}

/** Returns the document, or null when it is the rendered one. Throws KeyRejected for status 401 and 403. */
async function fetchDocument() {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  if (etag) headers["If-None-Match"] = etag;
  const response = await fetch(address, { headers, cache: "no-store" });
  if (response.status === 304) return null;
  if (response.ok) return { text: await response.text(), etag: response.headers.get("ETag") };
  const problem = await response.json().catch(() => ({}));
  const detail = problem.detail || `the server responded with status ${response.status}`;
  throw response.status === 401 || response.status === 403 ? new KeyRejected(detail) : new Error(detail);
}

/** Removes the key and shows the form; `refusal` is why the previous key was rejected. */
function promptForKey(refusal) {
  clearTimeout(timer);
  generation += 1;
  sessionStorage.removeItem(KEY);
  etag = null;
  rendered = "";
  at("swagger").replaceChildren();
  for (const id of ["session", "models", "changed", "problem"]) show(id, false);
  show("ask", true);
  show("refusal", Boolean(refusal));
  at("refusal").textContent = refusal ? `This key was rejected: ${refusal}` : "";
  at("key").value = "";
  at("key").focus();
}

/** Returns whether a "Try it out" is open: rendering again would discard its input and response. */
const busy = () => document.querySelector("#swagger .try-out__btn.cancel") !== null;

function render(spec) {
  const container = document.createElement("div");
  at("swagger").replaceChildren(container);
  const models = spec["x-trivium-models"];
  show("models", Boolean(models));
  if (models) listModels(models);
  SwaggerUIBundle({
    spec,
    domNode: container,
    deepLinking: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: -1,  // each operation shows its own; rendering hundreds would take seconds
    docExpansion: model ? "full" : "list",
    validatorUrl: null,
    requestInterceptor: (request) => {
      if (new URL(request.url, location).origin === location.origin) {
        request.headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
      }
      return request;
    },
  });
}

function listModels(models) {
  at("count").textContent = `${models.length.toLocaleString("en")} models`;
  at("list").replaceChildren(...models.map((m) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    const name = document.createElement("b");
    const about = document.createElement("span");
    link.href = m.docs;
    name.textContent = m.name;
    about.textContent = [`version ${m.version}`, m.alias, m.runtime, m.description].filter(Boolean).join(" · ");
    item.dataset.text = `${m.name} ${m.description}`.toLowerCase();
    link.append(name, about);
    item.append(link);
    return item;
  }));
  filter();
}

function filter() {
  const text = at("filter").value.trim().toLowerCase();
  let count = 0;
  for (const item of at("list").children) {
    item.hidden = !item.dataset.text.includes(text);
    count += !item.hidden;
  }
  show("none", count === 0);
}

/** Fetches the document and renders it when it changed; `force` renders also over an open "Try it out". */
async function refresh(force) {
  clearTimeout(timer);
  const current = ++generation;
  try {
    const fresh = await fetchDocument();
    if (current !== generation) return;
    show("ask", false);
    show("problem", false);
    show("session", true);
    live("live", true);
    if (fresh && fresh.text !== rendered && busy() && !force) {
      show("changed", true);
    } else if (fresh) {
      etag = fresh.etag;
      show("changed", false);
      if (fresh.text !== rendered) render(JSON.parse(fresh.text));
      rendered = fresh.text;
    }
  } catch (error) {
    if (current !== generation) return;
    if (error instanceof KeyRejected) {
      promptForKey(error.message);
      return;
    }
    showFailure(error);
  }
  schedule();
}

/** Keeps the rendered document: the page polls until the server is back, or the model is ready. */
function showFailure(error) {
  const unreached = error instanceof TypeError;  // thrown by fetch when the server cannot be reached
  live(unreached ? "server not reachable" : "waiting", false);
  show("ask", false);
  show("session", true);
  show("problem", !unreached || etag === null);
  at("problem").textContent = unreached ? "The server is not reachable. Trying again." : `Not available: ${error.message}. Trying again.`;
}

function live(text, good) {
  at("live").textContent = text;
  at("live").classList.toggle("lost", !good);
}

/** Polls only while the page is visible. */
function schedule() {
  clearTimeout(timer);
  if (document.visibilityState === "visible") timer = setTimeout(refresh, POLL_MS);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    promptForKey("it contains characters that are not allowed in a key");
    return;
  }
  sessionStorage.setItem(KEY, key);
  refresh(true);
});
at("forget").addEventListener("click", () => promptForKey());
at("reload").addEventListener("click", () => refresh(true));
at("filter").addEventListener("input", filter);
document.addEventListener("visibilitychange", () => {
  if (sessionStorage.getItem(KEY)) refresh();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyTheme);
applyTheme();

at("where").textContent = model ? `model ${model}` : "all models";
show("all", Boolean(model));
document.title = model ? `${model} · Trivium` : "Trivium";
if (sessionStorage.getItem(KEY)) refresh(true); else promptForKey();
