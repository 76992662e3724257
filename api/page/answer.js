/** One model's answer to one prompt: its tokens as they come, and how fast they came to this browser. */

import { stream } from "./api.js";
import { make, rate } from "./dom.js";
import { sharesOf } from "./sources.js";
import { Tokens } from "./tokens.js";

export const TOP = 5; // alternatives of a token

export class Answer {
  /** how: "auto", or "off" for an answer without drafts. onGrow: called when there is more to see. */
  constructor(model, how, exits, onGrow, clock = () => performance.now()) {
    Object.assign(this, { model, how, exits, onGrow, clock });
    this.name = how === "off" ? `${model}, without drafts` : model;
    this.content = "";
    this.ids = [];
    this.sources = [];
    this.firstMs = this.lastMs = null;
    this.numFirst = 0;
    this.tokens = new Tokens(exits, `Answer of ${this.name}. The arrow keys go from token to token.`);
    this.speedLabel = make("span", { class: "speed" }, "waiting");
    this.foot = make("div", { class: "foot" });
    const head = make("header", {}, make("h3", {}, this.name), this.speedLabel);
    this.element = make("section", { class: "answer", "aria-label": `Answer of ${this.name}` }, head, this.tokens.element, this.foot);
  }

  /** asked: the fields of the request that answers side by side have in common. */
  async run(asked, signal) {
    const options = { include_usage: true };
    const told = { logprobs: true, top_logprobs: TOP, return_token_ids: true, return_token_sources: true };
    const how = this.how === "off" ? { speculation: "off" } : {};
    const body = { model: this.model, ...asked, ...told, ...how, stream: true, stream_options: options };
    this.element.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of stream("v1/chat/completions", body, signal)) this.take(chunk);
      this.tokens.finish(this.content);
    } catch (error) {
      this.fail(error);
      throw error;
    } finally {
      this.element.removeAttribute("aria-busy");
      if (this.speed === null) this.speedLabel.textContent = "";
    }
  }

  take(chunk) {
    if (chunk.metrics) this.stats = chunk.metrics.speculative_decoding;
    const choice = chunk.choices[0];
    if (!choice) return this.summarize();
    this.content += choice.delta.content ?? "";
    if (!choice.token_ids.length) return undefined;
    this.exits.add(choice.token_sources.map(Math.abs));
    choice.logprobs.content.forEach((entry, at) => this.tokens.add(entry, choice.token_sources[at]));
    this.ids.push(...choice.token_ids);
    this.sources.push(...choice.token_sources);
    this.time();
    return this.onGrow();
  }

  time() {
    this.lastMs = this.clock();
    if (this.firstMs === null) [this.firstMs, this.numFirst] = [this.lastMs, this.ids.length];
    if (this.speed !== null) this.speedLabel.textContent = `${rate(this.speed)} tokens/s`;
  }

  /** Tokens per second behind the first piece; null before there is a second one. */
  get speed() {
    const spent = this.lastMs - this.firstMs;
    return spent > 0 ? (1e3 * (this.ids.length - this.numFirst)) / spent : null;
  }

  summarize() {
    if (!this.sources.length) return;
    const { bar, words } = sharesOf(this.sources, this.exits);
    const parts = [`${this.ids.length} tokens: ${words}`];
    if (this.stats) parts.push(`${this.stats.mean_acceptance_length.toFixed(2)} a round`);
    this.foot.replaceChildren(bar, make("p", {}, parts.join(" · ")));
  }

  fail(error) {
    const words = error.name === "AbortError" ? "Stopped." : error.message;
    this.summarize();
    this.foot.append(make("p", { class: "problem", role: "alert" }, words));
  }
}

/** What two answers of one model, with drafts and without, say together. */
export function compare(drafted, plain) {
  if (drafted.speed === null || plain.speed === null) return "";
  const same = drafted.ids.length === plain.ids.length && drafted.ids.every((id, at) => id === plain.ids[at]);
  const times = (drafted.speed / plain.speed).toFixed(2);
  const text = same ? `All ${plain.ids.length} tokens are the same.` : "The tokens differ.";
  return `One after the other, ${rate(drafted.speed)} tokens/s with drafts and ${rate(plain.speed)} without: ${times} times. ${text}`;
}
