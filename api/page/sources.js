/** Where tokens came from: 0 the target itself, an exit of the drafter, below 0 if it was drafted ahead. */

import { make, percent } from "./dom.js";

const KINDS = ["exit-a", "exit-b", "exit-c", "exit-d"];

/** The exits seen so far, and the colour of each: the deeper, the later. */
export class Exits {
  constructor(legend) {
    this.legend = legend;
    this.known = [];
    this.draw();
  }

  add(exits) {
    const all = [...new Set([...this.known, ...exits])].filter((exit) => exit > 0).sort((a, b) => a - b);
    if (all.length === this.known.length) return;
    this.known = all;
    this.draw();
    for (const token of document.querySelectorAll("[data-source]")) this.dress(token, Number(token.dataset.source));
  }

  dress(element, source) {
    element.dataset.source = source;
    element.classList.remove("own", ...KINDS);
    element.classList.add(this.kind(source));
    element.classList.toggle("ahead", source < 0);
  }

  kind(source) {
    return source === 0 ? "own" : KINDS[Math.min(this.known.indexOf(Math.abs(source)), KINDS.length - 1)] ?? KINDS[0];
  }

  draw() {
    const entries = [["own", "the target itself"]];
    for (const exit of this.known) entries.push([this.kind(exit), `drafted at exit ${exit}`]);
    if (!this.known.length) entries.push([KINDS[0], "drafted, by exit"]);
    entries.push([`${this.kind(this.known[0] ?? 1)} ahead`, "underlined: drafted ahead"]);
    const swatch = (kind) => make("span", { class: `swatch ${kind}`, "aria-hidden": "true" }, "ab");
    this.legend.replaceChildren(...entries.map(([kind, words]) => make("li", {}, swatch(kind), words)));
  }
}

export function named(source) {
  if (source === 0) return "picked by the target itself";
  return `drafted ${source < 0 ? "ahead " : ""}at exit ${Math.abs(source)} and accepted`;
}

/** A bar of shares by source, and the same in words. */
export function sharesOf(sources, exits) {
  const counts = new Map();
  for (const source of sources) counts.set(Math.abs(source), (counts.get(Math.abs(source)) ?? 0) + 1);
  const parts = [...counts].sort(([a], [b]) => a - b);
  const bar = make("div", { class: "shares", "aria-hidden": "true" });
  for (const [exit, count] of parts) {
    const part = make("span", { class: exits.kind(exit) });
    part.style.setProperty("flex-grow", count);
    bar.append(part);
  }
  const words = parts.map(([exit, n]) => `${exit ? `exit ${exit}` : "target"} ${percent(n / sources.length)}`);
  const ahead = sources.filter((source) => source < 0).length;
  if (ahead) words.push(`ahead ${percent(ahead / sources.length)}`);
  return { bar, words: words.join(" · ") };
}
