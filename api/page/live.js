/** The live view: asks the server once a second while it is shown, and keeps the last minute. */

import { getJson } from "./api.js";
import { poolCard, targetCard } from "./cards.js";
import { byId } from "./dom.js";
import { Timeline } from "./timeline.js";
import { tracks } from "./tracks.js";

const EVERY_MS = 1000;
const KEPT = 60; // samples
const ROUNDS = 64; // that are asked for at a time
const SEEN = 512; // rounds of a target that acceptance is counted over

export class Live {
  /** measured: by model, its speeds with and without drafts as the chat has seen them. */
  constructor(exits, measured) {
    Object.assign(this, { exits, measured, samples: [], paused: false, seen: new Map(), timeline: new Timeline() });
    byId("timeline").replaceChildren(this.timeline.element);
    byId("pause").addEventListener("click", () => this.pause(!this.paused));
    this.turn();
  }

  pause(paused) {
    this.paused = paused;
    byId("pause").textContent = paused ? "Go on" : "Pause";
    byId("pause").setAttribute("aria-pressed", String(paused));
  }

  get isShown() {
    return !this.paused && document.visibilityState === "visible" && byId("live").offsetParent !== null;
  }

  async turn() {
    if (this.isShown) await this.ask();
    setTimeout(() => this.turn(), EVERY_MS);
  }

  async ask() {
    try {
      const paths = ["debug/stats", "debug/router", `debug/trace?rounds=${ROUNDS}`];
      const [stats, router, trace] = await Promise.all(paths.map(getJson));
      this.samples.push({ at: performance.now() / 1e3, stats });
      this.samples.splice(0, this.samples.length - KEPT);
      this.draw(stats, router, tracks(trace));
      this.lack("");
    } catch (error) {
      this.lack(error.status === 401 ? "These numbers are for operators: give an admin key under Key. The chat works without." : error.message);
    }
  }

  draw(stats, router, drawn) {
    const names = Object.keys(stats.targets);
    this.exits.add(names.flatMap((name) => Object.keys(router[name]?.[0]?.acceptance ?? {}).map(Number)));
    byId("targets").replaceChildren(
      ...names.map((name) =>
        targetCard(name, {
          samples: this.samples.map(({ at, stats: told }) => ({ at, replicas: told.targets[name] ?? [] })),
          router: router[name]?.[0],
          rounds: this.roundsOf(name, drawn),
          measured: this.measured.get(name),
          exits: this.exits,
        }),
      ),
    );
    byId("pool").replaceChildren(poolCard(this.samples, drawn));
    byId("timeline").hidden = false;
    this.timeline.draw(drawn);
  }

  /** The last rounds of a target that were seen, those of one replica by their numbers. */
  roundsOf(name, drawn) {
    const rounds = this.seen.get(name) ?? new Map();
    for (const track of drawn.filter((each) => each.target === name)) {
      for (const round of track.rounds) rounds.set(`${track.name} ${round.name}`, round);
    }
    const last = [...rounds].slice(-SEEN);
    this.seen.set(name, new Map(last));
    return last.map(([, round]) => round);
  }

  lack(words) {
    byId("lacking").textContent = words;
    byId("lacking").hidden = !words;
  }
}
