// Asks for an API key once, draws openapi.json with Swagger UI, and keeps what is drawn up to date.
"use strict";

const KEY = "trivium.key";
const POLL_MS = 2000;

const at = (id) => document.getElementById(id);
const show = (id, visible) => { at(id).hidden = !visible; };
// /docs -> /openapi.json, /v1/models/NAME/docs -> /v1/models/NAME/openapi.json
const address = location.pathname.replace(/\/docs\/?$/, "/openapi.json");
const model = decodeURIComponent((location.pathname.match(/\/models\/([^/]+)\/docs\/?$/) || [])[1] || "");

let etag = null;  // of the document that is drawn
let drawn = "";   // its text: the registry also moves for things that no document shows
let timer = null;
let turn = 0;     // raised by every fetch and by "Forget key": an answer that comes after the next is dropped

class Refused extends Error {}

/** The document when it is another than the one drawn, else null. Throws Refused for a bad key. */
async function fetchDocument() {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  if (etag) headers["If-None-Match"] = etag;
  const response = await fetch(address, { headers, cache: "no-store" });
  if (response.status === 304) return null;
  if (response.ok) return { text: await response.text(), etag: response.headers.get("ETag") };
  const problem = await response.json().catch(() => ({}));
  const said = problem.detail || `the server answered ${response.status}`;
  throw response.status === 401 || response.status === 403 ? new Refused(said) : new Error(said);
}

function ask(refusal) {
  clearTimeout(timer);
  turn += 1;
  sessionStorage.removeItem(KEY);
  etag = null;
  drawn = "";
  at("swagger").replaceChildren();
  for (const id of ["session", "models", "changed", "problem"]) show(id, false);
  show("ask", true);
  show("refusal", Boolean(refusal));
  at("refusal").textContent = refusal ? `This key was refused: ${refusal}` : "";
  at("key").value = "";
  at("key").focus();
}

/** Someone has opened "Try it out": drawing anew would throw away what he typed or was answered. */
const busy = () => document.querySelector("#swagger .try-out__btn.cancel") !== null;

function draw(spec) {
  const ground = document.createElement("div");
  at("swagger").replaceChildren(ground);
  const models = spec["x-trivium-models"];
  show("models", Boolean(models));
  if (models) list(models);
  SwaggerUIBundle({
    spec,
    domNode: ground,
    deepLinking: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: -1,  // each operation shows its own; hundreds of them below would cost seconds
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

function list(models) {
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
  const wanted = at("filter").value.trim().toLowerCase();
  let found = 0;
  for (const item of at("list").children) {
    item.hidden = !item.dataset.text.includes(wanted);
    found += !item.hidden;
  }
  show("none", found === 0);
}

/** Fetches, and draws what is new; `force` draws even over an open "Try it out". */
async function refresh(force) {
  clearTimeout(timer);
  const mine = ++turn;
  try {
    const fresh = await fetchDocument();
    if (mine !== turn) return;
    show("ask", false);
    show("problem", false);
    show("session", true);
    live("live", true);
    if (fresh && fresh.text !== drawn && busy() && !force) {
      show("changed", true);
    } else if (fresh) {
      etag = fresh.etag;
      show("changed", false);
      if (fresh.text !== drawn) draw(JSON.parse(fresh.text));
      drawn = fresh.text;
    }
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof Refused) {
      ask(error.message);
      return;
    }
    failed(error);
  }
  schedule();
}

/** What is drawn stays: a server that restarts, or a model that is not ready yet, comes back by itself. */
function failed(error) {
  const unreached = error instanceof TypeError;  // what fetch throws when there is no answer at all
  live(unreached ? "server not reached" : "waiting", false);
  show("ask", false);
  show("session", true);
  show("problem", !unreached || etag === null);
  at("problem").textContent = unreached ? "The server does not answer. Trying again." : `Not now: ${error.message}. Trying again.`;
}

function live(text, good) {
  at("live").textContent = text;
  at("live").classList.toggle("lost", !good);
}

/** A page nobody looks at asks for nothing. */
function schedule() {
  clearTimeout(timer);
  if (document.visibilityState === "visible") timer = setTimeout(refresh, POLL_MS);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) {
    ask("it holds characters that no key has");
    return;
  }
  sessionStorage.setItem(KEY, key);
  refresh(true);
});
at("forget").addEventListener("click", () => ask());
at("reload").addEventListener("click", () => refresh(true));
at("filter").addEventListener("input", filter);
document.addEventListener("visibilitychange", () => {
  if (sessionStorage.getItem(KEY)) refresh();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const shade = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", shade);
shade();

at("where").textContent = model ? `model ${model}` : "all models";
show("all", Boolean(model));
document.title = model ? `${model} · Trivium` : "Trivium";
if (sessionStorage.getItem(KEY)) refresh(true); else ask();
