// What `status` says, as numbers, lines and tables.
import { Chart } from "./chart.js";
import { count, duration, list, score, table, write } from "./dom.js";
import { outcome } from "./episode.js";

const SPAN = 15; // seconds that a rate is taken over
const byId = (id) => document.getElementById(id);
const charts = { reward: new Chart(byId("reward"), [0, 0]), success: new Chart(byId("success"), [0, 1]) };
const link = ({ id }) => `#episode=${encodeURIComponent(id)}`;
let past = []; // [run, time, episodes, tokens] of the last seconds

export function drawStatus(status, opened) {
  const { now, policy, workers, queues, counters } = status;
  const works = policy.rollout ? "waits for episodes" : "trains";
  write(byId("about"), `${policy.model} · step ${count(policy.version)} · ${works} · up ${duration(now - status.started)}`);

  const [episodesRate, tokensRate] = rates(status);
  const trained = status.series.filter(({ split }) => split === "train");
  const lastOf = (name) => score(trained.findLast((point) => point[name] !== null)?.[name]);
  list(byId("numbers"), [
    ["workers", count(workers.length)],
    [`running of ${count(sum(workers, "concurrency"))}`, count(queues.running)],
    ["queued episodes", count(queues.episodes)],
    ["waiting turns", count(queues.completions), queues.completions >= queues.completions_limit ? "warn" : ""],
    ["episodes/s", score(episodesRate)],
    ["tokens/s", count(tokensRate)],
    ["reward", lastOf("reward")],
    ["success", lastOf("success")],
    ["failed", count(counters.failed), counters.failed ? "bad" : ""],
  ]);
  for (const [name, chart] of Object.entries(charts)) {
    const line = (wanted) => status.series.filter(({ split, [name]: value }) => split === wanted && value !== null)
      .map(({ step, [name]: value }) => [step, value]);
    chart.update([line("train"), line("eval")]);
  }
  drawTables(status, opened);
  list(byId("counters"), [
    ["asked", counters.asked],
    ["done", counters.done],
    ["failed", counters.failed],
    ["dropped: too late, or of too old a policy", counters.dropped],
    ["open: queued or running", counters.open],
    ["leases lost, queued again", counters.requeued],
    ["messages that came twice", counters.duplicates],
    ["messages for a lease that is over", counters.stale],
    ["malformed messages", counters.garbage],
    ["refused requests", counters.refused],
    ["turns sampled", policy.completions],
    ["tokens sampled", policy.tokens],
    ["turns in the last batch", policy.last_batch],
  ].map(([name, value]) => [name, count(value)]));
}

function drawTables({ now, finished, workers, queues, running, failures }, opened) {
  table(byId("finished"), [
    { name: "episode", classes: "name", cell: ({ id }) => id, link },
    { name: "outcome", cell: outcome },
    { name: "reward", classes: "number", cell: ({ reward }) => score(reward) },
    { name: "turns", classes: "number", cell: ({ turns }) => count(turns) },
    { name: "step", classes: "number minor", cell: ({ step }) => count(step) },
    { name: "took", classes: "number minor", cell: ({ seconds }) => duration(seconds) },
    { name: "worker", classes: "name minor", cell: ({ worker }) => worker },
    { name: "row", classes: "name minor", cell: ({ row }) => row },
  ], finished, ({ id }) => id, "No episode has ended yet.", opened);
  const all = queues.running > running.length ? `: the first ${count(running.length)} of ${count(queues.running)}` : "";
  write(byId("running-title"), `Running episodes${all}`);
  table(byId("running"), [
    { name: "episode", classes: "name", cell: ({ id }) => id, link },
    { name: "turn", classes: "number", cell: ({ turn }) => count(turn) },
    { name: "waits for", cell: (one) => one.waits_for },
    { name: "since", classes: "number", cell: ({ age }) => duration(age) },
    { name: "attempt", classes: "number minor", cell: ({ attempt }) => [count(attempt), attempt > 1 ? "warn" : ""] },
    { name: "worker", classes: "name minor", cell: ({ worker }) => worker },
  ], running, ({ id }) => id, "No episode is running.", opened);
  table(byId("workers"), [
    { name: "worker", classes: "name", cell: ({ id }) => id },
    { name: "environment", cell: ({ environments, kind }) => (environments.length ? environments.join(", ") : kind) },
    { name: "running", classes: "number", cell: (one) => `${count(one.running)} / ${count(one.concurrency)}` },
    { name: "done", classes: "number", cell: ({ done }) => count(done) },
    { name: "failed", classes: "number", cell: ({ failed }) => [count(failed), failed ? "bad" : ""] },
    { name: "heard", classes: "number", cell: (one) => `${duration(one.heartbeat_age)} ago${one.draining ? ", leaving" : ""}` },
    { name: "connected", classes: "number minor", cell: ({ connected }) => duration(connected) },
  ], workers, ({ kind, id }) => `${kind} ${id}`, "No worker is connected.");
  table(byId("failures"), [
    { name: "episode", classes: "name", cell: ({ id }) => id, link },
    { name: "failure", cell: ({ error }) => error },
    { name: "worker", classes: "name minor", cell: ({ worker }) => worker },
    { name: "when", classes: "number", cell: ({ at }) => `${duration(now - at)} ago` },
  ], failures, ({ id, at }) => `${id} ${at}`, "Nothing has failed.");
}

/** Episodes and tokens a second, over the last seconds that this page has seen. */
function rates({ run, now, counters, policy }) {
  const ended = counters.done + counters.failed;
  past = past.filter((one) => one.run === run && one.now > now - SPAN && one.now < now);
  past.push({ run, now, ended, tokens: policy.tokens });
  const seconds = now - past[0].now;
  return seconds < 0.5 ? [null, null] : [(ended - past[0].ended) / seconds, (policy.tokens - past[0].tokens) / seconds];
}

const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);
