/** The last rounds of the targets and the passes of the pool under one time axis. */

import { make, makeSvg } from "./dom.js";

const LANE = 26;
const AXIS = 18;
const TABLE_ROWS = 12;
const MIN_WIDTH = 280;
const COLUMNS = ["target", "round", "mode", "depth", "proposed", "accepted", "ms"];

export class Timeline {
  constructor() {
    this.picture = make("div");
    this.rows = make("tbody");
    const heads = COLUMNS.map((words) => make("th", { scope: "col" }, words));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), this.rows);
    const scrolls = make("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": "Last rounds as a table" }, table);
    const details = make("details", {}, make("summary", {}, "The same as a table"), scrolls);
    const title = make("header", {}, make("h3", {}, "Last rounds"));
    this.element = make("article", { class: "card" }, title, this.picture, key(), details);
  }

  draw(all) {
    const lanes = all.filter((each) => each.shown.length);
    const width = Math.max(this.picture.clientWidth, MIN_WIDTH);
    const empty = make("p", { class: "fine" }, "No round yet: ask something.");
    this.picture.replaceChildren(lanes.length ? picture(lanes, width) : empty);
    this.rows.replaceChildren(...rows(all));
  }
}

function picture(lanes, width) {
  const [{ from, to }] = lanes;
  const x = (ts) => ((ts - from) / (to - from)) * width;
  const height = lanes.length * (LANE + 16) + AXIS;
  const inner = lanes.flatMap((lane, at) => drawLane(lane, at * (LANE + 16), x, width));
  const words = `Time line of ${((to - from) / 1e3).toFixed(0)} ms: ${lanes.map((lane) => lane.name).join(", ")}`;
  const attributes = { class: "timeline", role: "img", "aria-label": words, viewBox: `0 0 ${width} ${height}`, width, height };
  return makeSvg("svg", attributes, ...axis(from, to, x, height), ...inner);
}

function drawLane(lane, top, x, width) {
  const label = makeSvg("text", { class: "lane", x: 0, y: top + 11 }, lane.name);
  const ground = makeSvg("rect", { class: "ground", x: 0, y: top + 15, width, height: LANE - 2, rx: 3 });
  const inOrder = [...lane.shown].sort((a, b) => a.isRound - b.isRound); // outlines of rounds over their parts
  const slices = inOrder.map((slice) => {
    const begin = Math.max(x(slice.ts), 0);
    const size = { x: begin, y: top + 15, width: Math.max(Math.min(x(slice.end), width) - begin, 0.5), height: LANE - 2 };
    if (slice.isRound) return makeSvg("rect", { class: "round", ...size, rx: 3 }, title(slice));
    return makeSvg("rect", { class: `slice ${kindOf(slice)}`, ...size }, title(slice));
  });
  const numbers = lane.shown.filter((slice) => slice.isRound && x(slice.end) - Math.max(x(slice.ts), 0) > 26).map((slice) => {
    const middle = (Math.max(x(slice.ts), 0) + x(slice.end)) / 2;
    return makeSvg("text", { class: "committed", x: middle, y: top + 31 }, `+${slice.args.committed}`);
  });
  return [label, ground, ...slices, ...numbers];
}

function kindOf(slice) {
  if ("targets" in slice.args) return "pass";
  return { draft: "draft", plan: "plan", commit: "commit" }[slice.name] ?? "verify";
}

function title(slice) {
  const told = Object.entries(slice.args).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
  return makeSvg("title", {}, [`${slice.name}: ${(slice.dur / 1e3).toFixed(2)} ms`, ...told].join("\n"));
}

function axis(from, to, x, height) {
  const span = (to - from) / 1e3;
  const steps = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
  const step = steps.find((each) => span / each <= 6) ?? span;
  const marks = [];
  for (let ms = 0; ms < 0.93 * span; ms += step) {
    const at = x(from + 1e3 * ms);
    marks.push(makeSvg("line", { class: "mark", x1: at, x2: at, y1: 0, y2: height - AXIS + 4 }));
    marks.push(makeSvg("text", { class: "ms", x: at + 2, y: height - 3 }, `${ms} ms`));
  }
  return marks;
}

function key() {
  const kinds = ["plan", "draft", "verify", "commit", "pass"];
  const words = { draft: "waits for drafts", pass: "a pass of the drafter" };
  const entries = kinds.map((kind) => make("li", {}, make("span", { class: `square ${kind}`, "aria-hidden": "true" }), words[kind] ?? kind));
  return make("ul", { class: "legend" }, ...entries, make("li", {}, "+3: tokens that a round gave"));
}

function rows(all) {
  const rounds = all.flatMap((each) => each.rounds.map((round) => ({ ...round, target: each.name })));
  return rounds.sort((a, b) => b.end - a.end).slice(0, TABLE_ROWS).map((round) => {
    const [, number, ...mode] = round.name.split(" ");
    const [depth, ms] = [round.depth ?? "–", ((round.end - round.ts) / 1e3).toFixed(1)];
    const cells = [round.target, number, mode.join(" "), depth, round.proposed.join(" "), round.accepted.join(" "), ms];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
}
