/** The tokens of an answer: each one coloured, and told about on hover or by the arrow keys. */

import { bar, byId, make, percent } from "./dom.js";
import { named } from "./sources.js";

export class Tokens {
  constructor(exits, label) {
    this.exits = exits;
    this.all = [];
    this.decoder = new TextDecoder();
    this.current = -1;
    this.element = make("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": label });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.element.addEventListener("pointerover", (event) => this.onPointer(event));
    this.element.addEventListener("pointerleave", () => this.leave());
    this.element.addEventListener("blur", () => this.leave());
  }

  /** entry: as the API tells logprobs of a token. A character of several tokens stands in its last one. */
  add(entry, source) {
    const text = this.decoder.decode(new Uint8Array(entry.bytes), { stream: true });
    const element = make("span", { class: "token", "data-index": this.all.length }, text);
    if (/^[\n\r]/.test(text)) element.classList.add("newline");
    this.exits.dress(element, source);
    this.all.push({ entry, source, text, element });
    this.element.append(element);
  }

  get text() {
    return this.all.map((token) => token.text).join("");
  }

  /** shown: the text of the answer. A last token that is not in it ended the answer. */
  finish(shown) {
    const last = this.all.at(-1);
    if (!last || this.text === shown || this.text.slice(0, -last.text.length || undefined) !== shown) return;
    last.element.textContent = "end";
    last.element.classList.add("end");
  }

  onPointer(event) {
    const token = event.target.closest("[data-index]");
    if (token) this.show(Number(token.dataset.index));
  }

  onKey(event) {
    const last = this.all.length - 1;
    const to = { ArrowRight: this.current + 1, ArrowLeft: this.current - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.leave();
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.show(Math.min(Math.max(to, 0), last));
    byId("said").textContent = this.spoken(this.all[this.current]);
  }

  leave() {
    this.all[this.current]?.element.classList.remove("current");
    byId("inspector").hidden = true;
  }

  show(index) {
    this.leave();
    this.current = index;
    const token = this.all[index];
    token.element.classList.add("current");
    token.element.scrollIntoView({ block: "nearest" });
    const inspector = byId("inspector");
    inspector.replaceChildren(...this.told(token));
    inspector.hidden = false;
    place(inspector, token.element.getClientRects()[0] ?? token.element.getBoundingClientRect());
  }

  told({ entry, source }) {
    const rows = alternatives(entry).map(({ token, logprob, chosen }) =>
      make(
        "tr",
        { class: chosen ? "chosen" : null },
        make("td", {}, visible(token)),
        make("td", {}, bar(Math.exp(logprob))),
        make("td", {}, percent(Math.exp(logprob))),
      ),
    );
    const where = make("p", {}, make("span", { class: `swatch ${this.exits.kind(source)}` }, "ab"), named(source));
    return [where, make("table", {}, make("tbody", {}, ...rows))];
  }

  spoken({ entry, source }) {
    const others = alternatives(entry).filter((each) => !each.chosen);
    const told = others.map((each) => `${visible(each.token)} ${percent(Math.exp(each.logprob))}`);
    const own = `${visible(entry.token)}, ${percent(Math.exp(entry.logprob))}, ${named(source)}`;
    return told.length ? `${own}. Instead: ${told.join(", ")}` : own;
  }
}

/** The most probable tokens of a place, the chosen one among them. */
function alternatives(entry) {
  const same = (other) => other.token === entry.token && other.logprob === entry.logprob;
  const others = entry.top_logprobs.filter((other) => !same(other));
  const all = [{ ...entry, chosen: true }, ...others];
  return all.sort((a, b) => b.logprob - a.logprob);
}

function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(nothing)";
}

/** Below a token, or above it where there is no room. */
function place(card, rect) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const left = Math.min(Math.max(rect.left, 8), innerWidth - width - 8);
  const below = rect.bottom + 8 + height < innerHeight;
  card.style.setProperty("left", `${Math.max(left, 8)}px`);
  card.style.setProperty("top", `${below ? rect.bottom + 6 : Math.max(rect.top - height - 6, 8)}px`);
}
