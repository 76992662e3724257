/** Puts the page together: chat, live view, key, theme. */

import { getJson, keepKey, readKey } from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { Live } from "./live.js";
import { Exits } from "./sources.js";

const THEME = "draftpool.theme";
const WHY = byId("key-why").textContent;
const RETRY_MS = 2000;
const MODELS_MS = 15_000; // a model that has loaded since is offered

const exits = new Exits(byId("legend"));
const measured = new Map();
const chat = new Chat(exits, askForKey, (model, speeds) => measured.set(model, speeds));

function askForKey(why = WHY) {
  byId("key-why").textContent = why;
  byId("key").value = readKey();
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

function useKey(key) {
  keepKey(key);
  byId("key-dialog").close();
  begin();
}

async function begin() {
  try {
    await chat.loadModels();
    byId("version").textContent = (await getJson("version")).version;
    trouble("");
  } catch (error) {
    trouble(error.message);
    if (error.status === 401) askForKey(error.message);
  }
}

/** Models load one after another, and a server may be away for a while; a key that is asked for is waited for. */
async function keepAsking() {
  if (!byId("key-dialog").open) await begin();
  setTimeout(keepAsking, byId("trouble").hidden ? MODELS_MS : RETRY_MS);
}

function trouble(words) {
  byId("trouble").textContent = words;
  byId("trouble").hidden = !words;
}

function show(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("[data-shows]")) {
    button.setAttribute("aria-pressed", String(button.dataset.shows === view));
  }
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
}

for (const button of document.querySelectorAll("[data-shows]")) {
  button.addEventListener("click", () => show(button.dataset.shows));
}
byId("open-key").addEventListener("click", () => askForKey());
byId("close-key").addEventListener("click", () => byId("key-dialog").close());
byId("forget-key").addEventListener("click", () => useKey(""));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
});
byId("theme").addEventListener("change", () => {
  localStorage.setItem(THEME, byId("theme").value);
  dress(byId("theme").value);
});

dress(localStorage.getItem(THEME) ?? "");
await keepAsking();
new Live(exits, measured);
