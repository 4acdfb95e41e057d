// The live page: asks for `status` once a second and draws what changed. Every address is relative to the page's own.
import { element, write } from "./dom.js";
import { drawEpisode, hasEnded } from "./episode.js";
import { drawStatus } from "./status.js";

const EVERY = 1000; // ms between two questions
const PATIENCE = 10_000; // ms until a question without an answer counts as a lost connection
const LONGEST_WAIT = 15_000; // ms between two tries
const TOKEN = `trl-ext-token:${location.pathname}`;

const byId = (id) => document.getElementById(id);
let timer = 0;
let asked = 0; // questions so far: an answer to an older one than the last is not drawn
let lost = 0; // questions without an answer since the last answer
let drawn = null; // the episode that the page shows

class NoToken extends Error {}
class ServerError extends Error {}

/** Ask the server for JSON. The token goes in a header: addresses are logged. */
async function ask(path) {
  const token = sessionStorage.getItem(TOKEN);
  const answer = await fetch(path, {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
    signal: AbortSignal.timeout(PATIENCE),
    cache: "no-store",
  });
  if (answer.status === 401) throw new NoToken();
  if (answer.ok) return answer.json();
  const said = await answer.json().catch(() => null);
  throw new ServerError(said?.error?.message ?? `the server answers ${answer.status}`);
}

async function update() {
  clearTimeout(timer);
  const mine = ++asked;
  if (document.hidden) return connection("paused", "paused");
  let status;
  try {
    status = await ask("status");
  } catch (error) {
    if (mine !== asked) return;
    if (error instanceof NoToken) return askForToken();
    const wait = Math.min(EVERY * 2 ** lost++, LONGEST_WAIT);
    timer = setTimeout(update, wait);
    byId("state").classList.add("stale");
    const what = error instanceof ServerError ? error.message : "lost connection";
    connection("lost", `${what}, retrying${lost > 1 ? ` in ${wait / 1000} s` : ""}`);
    return;
  }
  if (mine !== asked) return;
  lost = 0;
  byId("access").hidden = true;
  byId("state").hidden = false;
  byId("state").classList.remove("stale");
  connection(status.stopping ? "stopping" : "live", status.stopping ? "stopping" : "live");
  try {
    drawStatus(status, openedId());
    if (drawn && !hasEnded(drawn)) await showEpisode();
  } finally {
    if (mine === asked) timer = setTimeout(update, EVERY);
  }
}

function connection(state, text) {
  byId("connection").dataset.state = state;
  write(byId("connection"), text);
}

function askForToken() {
  const wrong = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  byId("state").hidden = true;
  byId("access").hidden = false;
  write(byId("wrong"), wrong ? "The server does not take this token." : "");
  connection("locked", "waiting for a token");
  byId("token").focus();
}

function openedId() {
  try {
    return decodeURIComponent(location.hash.match(/^#episode=(.+)$/)[1]);
  } catch {
    return null; // none, or no address that this page wrote
  }
}

/** Show the episode that the address names, again where it goes on. */
async function showEpisode() {
  const id = openedId();
  const node = byId("turns");
  byId("state").classList.toggle("closed", id === null);
  byId("close").hidden = id === null;
  write(byId("episode-title"), id === null ? "Episode" : `Episode ${id}`);
  if (drawn?.id !== id) drawn = null;
  if (id === null) return note(node, "Choose an episode to read it turn by turn.");
  try {
    const episode = await ask(`episodes/${encodeURIComponent(id)}`);
    if (id !== openedId()) return; // another was opened meanwhile
    drawn = episode;
    drawEpisode(node, episode);
  } catch (error) {
    if (id === openedId() && !(error instanceof NoToken)) note(node, `It cannot be shown: ${error.message}`);
  }
}

function note(node, text) {
  delete node.dataset.id;
  node.replaceChildren(element("p", "none", text));
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token").value = "";
  update();
  showEpisode();
});
document.addEventListener("visibilitychange", update);
window.addEventListener("online", update);
window.addEventListener("hashchange", async () => {
  update();
  await showEpisode();
  if (openedId() !== null) byId("episode").focus();
});
update();
showEpisode();
