// One episode, turn by turn: who said what, and what the environment gave for it.
import { count, duration, element, list, score, shown } from "./dom.js";

const LONG = 4000; // characters of one text that are shown at first

/** How an episode stands: [text, class]. */
export function outcome({ state, success, truncated }) {
  if (state === "failed") return ["failed", "bad"];
  if (state !== "done") return [state, state === "dropped" ? "warn" : ""];
  if (success) return ["success", "good"];
  if (truncated) return [`cut off: ${truncated}`, "warn"];
  return [success === null ? "over" : "no success", ""];
}

export const hasEnded = ({ state }) => state !== "queued" && state !== "running";

/** Draw an episode into an element. Turns that are there already stay: one that runs grows under its reader. */
export function drawEpisode(node, episode) {
  if (node.dataset.id !== episode.id) {
    node.replaceChildren(element("dl"), element("p", "failure"), element("div"));
    node.dataset.id = episode.id;
  }
  const [facts, failure, turns] = node.children;
  list(facts, [
    ["outcome", ...outcome(episode)],
    ["reward", score(episode.reward)],
    ["policy step", count(episode.step)],
    ["worker", episode.attempts > 1 ? `${episode.worker} (attempt ${episode.attempts})` : episode.worker, "name"],
    ["took", duration(episode.seconds)],
    ["environment", episode.environment],
    ...Object.entries(episode.row).map(([name, value]) => [name, asText(value), "name"]),
    ...Object.entries(episode.metrics).map(([name, value]) => [name, score(value)]),
  ]);
  failure.textContent = shown(episode.failure);
  failure.hidden = !episode.failure;

  const written = episode.turns.map((turn) => JSON.stringify(turn));
  const same = [...turns.children].findIndex((child, place) => child.dataset.turn !== written[place]);
  const kept = same < 0 ? turns.children.length : same;
  while (turns.children.length > kept) turns.lastElementChild.remove();
  let number = episode.turns.slice(0, kept).filter(isPolicy).length;
  episode.turns.slice(kept).forEach((turn, place) => {
    if (isPolicy(turn)) number++;
    const drawn = drawTurn(turn, isPolicy(turn) ? number : null);
    drawn.dataset.turn = written[kept + place];
    turns.append(drawn);
  });
}

const isPolicy = ({ role }) => role === "assistant";

function drawTurn({ role, text, reward }, number) {
  const head = element("h3", "", element("span", "", role));
  if (number !== null) head.append(element("span", "", `turn ${number}`));
  if (reward !== null) head.append(element("span", reward > 0 ? "good" : reward < 0 ? "bad" : "", `reward ${score(reward)}`));
  const block = element("pre", "said", text.slice(0, LONG));
  block.dir = "auto";
  const node = element("article", number === null ? "turn" : "turn policy", head, block);
  if (text.length > LONG) {
    const more = element("button", "more", `Show all ${count(text.length)} characters`);
    more.type = "button";
    more.addEventListener("click", () => {
      block.textContent = shown(text);
      more.remove();
    });
    node.append(more);
  }
  return node;
}

function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}
