/** What a target and the pool are doing, from counters of the last minute, as cards. */

import { bar, make, makeSvg, percent, rate } from "./dom.js";

const total = (replicas, ...names) =>
  replicas.reduce((sum, replica) => sum + names.reduce((part, name) => part + (replica[name] ?? 0), 0), 0);

/** target: its samples of counters, its router, its last rounds, and the speeds that the chat has measured. */
export function targetCard(name, { samples, router, rounds, measured, exits }) {
  const replicas = samples.at(-1).replicas;
  const [running, waiting] = [total(replicas, "num_running"), total(replicas, "num_waiting")];
  const use = 1 - total(replicas, "num_free_pages") / Math.max(total(replicas, "num_pages"), 1);
  const load = make("p", { class: "fine" }, `${running} running · ${waiting} waiting · KV ${percent(use)} in use`);
  const head = make("header", {}, make("h3", {}, name), make("span", { class: "arm" }, armOf(router)));
  if (!rounds.length) return make("article", { class: "card" }, head, load);
  return make("article", { class: "card" }, head, speeds(samples, rounds, router, measured), acceptance(rounds, router, exits), load);
}

function armOf(router) {
  if (!router) return "no answer";
  const { mode, depth, length } = router.arm ?? router;
  if (router.policy === "off" || !length) return router.policy === "off" ? "no drafts" : "drafts are off now";
  return `depth ${depth}, length ${length}${mode && mode !== "in turn" ? ", ahead" : ""}`;
}

/** Tokens of a second of work: pauses do not count, so it compares with what the router expects of plain decoding. */
export function pace(before, after) {
  const busy = (replicas) => total(replicas, "draft_ms", "verify_ms", "rest_ms");
  const spent = busy(after) - busy(before);
  return spent > 0 ? (1e3 * (total(after, "num_committed") - total(before, "num_committed"))) / spent : null;
}

/** The same of rounds that read no prompt; null where there is none. */
export function paceOf(rounds) {
  const own = rounds.filter((round) => !round.prefill_tokens && round.proposed.length);
  const us = own.reduce((sum, round) => sum + round.end - round.ts, 0);
  return us > 0 ? (1e6 * own.reduce((sum, round) => sum + round.committed, 0)) / us : null;
}

function speeds(samples, rounds, router, measured) {
  const paces = samples.slice(1).map((sample, at) => pace(samples[at].replicas, sample.replicas));
  const now = paces.at(-1) ?? null;
  const drafts = (round) => round.proposed.some((count) => count > 0);
  const told = [
    ["rounds with drafts", paceOf(rounds.filter(drafts)), "drafted"],
    ["rounds without", paceOf(rounds.filter((round) => !drafts(round)))],
    ["without, as the router expects", router?.arms?.find((arm) => arm.arm === "off")?.tokens_per_second ?? null],
    ["in the chat, with drafts", measured?.drafted ?? null, "drafted"],
    ["in the chat, without", measured?.plain ?? null],
  ].filter(([, value]) => value !== null);
  const most = Math.max(...told.map(([, value]) => value), 1);
  const rows = told.map(([words, value, kind]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, words),
      make("td", { class: "wide" }, bar(value / most, kind)),
      make("td", {}, rate(value)),
    ),
  );
  const caption = make("caption", {}, `Tokens per second while it works; now ${now === null ? "idle" : rate(now)}`);
  return make("div", {}, spark(paces), make("table", {}, caption, make("tbody", {}, ...rows)));
}

function spark(paces) {
  const most = Math.max(...paces.map((each) => each ?? 0), 1);
  const bars = paces.map((each, at) =>
    makeSvg("rect", { x: at * 5, y: 28 - (28 * (each ?? 0)) / most, width: 4, height: (28 * (each ?? 0)) / most }),
  );
  const label = { class: "spark", viewBox: "0 0 295 28", preserveAspectRatio: "none", "aria-hidden": "true" };
  return makeSvg("svg", label, ...bars);
}

function acceptance(rounds, router, exits) {
  const seen = new Map();
  for (const round of rounds) {
    for (const [exit, [judged, accepted]] of Object.entries(round.by_exit)) {
      const [before, right] = seen.get(exit) ?? [0, 0];
      seen.set(exit, [before + judged, right + accepted]);
    }
  }
  const believed = router?.acceptance ?? {};
  const all = [...new Set([...seen.keys(), ...Object.keys(believed)])].sort((a, b) => a - b);
  if (!all.length) return make("p", { class: "fine" }, "Nothing was drafted in its last rounds.");
  const rows = all.map((exit) => {
    const [judged, accepted] = seen.get(exit) ?? [0, 0];
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", { class: `swatch ${exits.kind(Number(exit))}`, "aria-hidden": "true" }, "ab"), `exit ${exit}`),
      make("td", { class: "wide" }, bar(judged ? accepted / judged : 0, "drafted")),
      make("td", {}, judged ? `${accepted} of ${judged}` : "–"),
      ...(router?.acceptance ? [make("td", {}, exit in believed ? percent(believed[exit]) : "–")] : []),
    );
  });
  const columns = ["exit", "", "rounds seen", ...(router?.acceptance ? ["believed"] : [])];
  const heads = columns.map((words) => (words ? make("th", { scope: "col" }, words) : make("td")));
  return make("table", {}, make("caption", {}, "Drafted tokens that were accepted"), make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

/** drawn: the tracks of the timeline, for how busy the drafters were in it. */
export function poolCard(samples, drawn) {
  const pool = samples.at(-1).stats.pool;
  const title = make("header", {}, make("h3", {}, "Draft pool"));
  if (!pool.length) {
    const words = "There is no pool apart: targets draft in their own process, or decode plainly.";
    return make("article", { class: "card" }, title, make("p", { class: "fine" }, words));
  }
  const before = samples.at(-2) ?? samples.at(-1);
  const spent = samples.at(-1).at - before.at;
  const drafted = spent > 0 ? (total(pool, "num_drafted") - total(before.stats.pool, "num_drafted")) / spent : 0;
  const use = 1 - total(pool, "num_free_pages") / Math.max(total(pool, "num_pages"), 1);
  const busy = drawn.filter((track) => track.target === null).map((track) => track.busy);
  const load = busy.reduce((sum, each) => sum + each, 0) / Math.max(busy.length, 1);
  const facts = [
    ["replicas", String(pool.length)],
    ["busy in the rounds above", percent(load)],
    ["drafted a second", rate(Math.max(drafted, 0))],
    ["wait for a pass", `${(total(pool, "wait_ms") / pool.length).toFixed(1)} ms`],
    ["sequences", String(total(pool, "num_sequences"))],
    ["KV in use", percent(use)],
    ["refused as busy", String(total(pool, "num_busy"))],
  ];
  const list = facts.map(([words, value]) => make("div", {}, make("dt", {}, words), make("dd", {}, value)));
  return make("article", { class: "card" }, title, make("dl", { class: "facts" }, ...list));
}
