/** The conversation: what was asked, the answers side by side, and the composer below. */

import { Answer, compare } from "./answer.js";
import { getJson } from "./api.js";
import { byId, make } from "./dom.js";

const SAME = "off"; // the same model, without drafts
const NEAR_PX = 80; // of the end: who has scrolled further up reads, and stays there

export class Chat {
  /** onRefused: called when the server wants a key. onMeasured: with a model and its speeds with and without drafts. */
  constructor(exits, onRefused, onMeasured) {
    Object.assign(this, { exits, onRefused, onMeasured, models: [], turns: [], running: null, follows: true });
    byId("turns").addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = byId("turns");
      this.follows = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("clear").addEventListener("click", () => this.clear());
    byId("model").addEventListener("change", () => this.offer());
  }

  /** Those that have loaded; what is chosen stays chosen. */
  async loadModels() {
    const models = (await getJson("v1/models")).data.map((model) => model.id);
    if (models.join("\n") === this.models.join("\n")) return;
    this.models = models;
    fill(byId("model"), models.map((id) => [id, id]));
    this.offer();
  }

  /** What may stand beside the chosen model. */
  offer() {
    const others = this.models.filter((id) => id !== byId("model").value);
    fill(byId("beside"), [["", "nothing"], [SAME, "itself without drafts"], ...others.map((id) => [`model ${id}`, id])]);
  }

  clear() {
    this.running?.abort();
    for (const turn of this.turns) turn.element.remove();
    this.turns = [];
    byId("hint").hidden = false;
    byId("prompt").focus();
  }

  async send() {
    const prompt = byId("prompt").value.trim();
    if (!prompt || this.running || !this.models.length) return;
    byId("prompt").value = "";
    byId("hint").hidden = true;
    const turn = this.begin(prompt);
    this.setRunning(new AbortController());
    try {
      await this.answer(turn, this.running.signal);
      this.tell(turn);
    } catch (error) {
      if (error.status === 401) this.onRefused(error.message);
    } finally {
      this.setRunning(null);
    }
  }

  begin(prompt) {
    const [model, beside] = [byId("model").value, byId("beside").value];
    const answer = (name, how) => new Answer(name, how, this.exits, () => this.follow());
    const answers = [answer(model, "auto")];
    if (beside === SAME) answers.push(answer(model, "off"));
    else if (beside) answers.push(answer(beside.slice("model ".length), "auto"));
    const columns = make("div", { class: "answers" }, ...answers.map((answer) => answer.element));
    const verdict = make("p", { class: "verdict", hidden: true });
    const element = make("article", { class: "turn" }, make("p", { class: "asked" }, prompt), columns, verdict);
    const turn = { prompt, answers, element, verdict, inTurn: beside === SAME };
    this.turns.push(turn);
    byId("turns").append(element);
    this.follows = true;
    this.follow();
    return turn;
  }

  follow() {
    if (this.follows) byId("turns").scrollTop = byId("turns").scrollHeight;
  }

  /** Answers with and without drafts come one after the other, so that neither slows the other down. */
  async answer(turn, signal) {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    const number = (id) => Number(byId(id).value);
    const asked = { temperature: number("temperature"), max_tokens: number("tokens"), seed };
    const runs = turn.answers.map((answer) => () => answer.run({ ...asked, messages: this.messages(answer.model) }, signal));
    if (!turn.inTurn) await all(runs.map((run) => run()));
    else for (const run of runs) await run();
  }

  /** The conversation as a model is told it: its own answers, or the first where it gave none. */
  messages(model) {
    const told = [];
    for (const turn of this.turns) {
      told.push({ role: "user", content: turn.prompt });
      const own = turn.answers.find((answer) => answer.model === model) ?? turn.answers[0];
      if (turn === this.turns.at(-1)) break;
      if (own.content) told.push({ role: "assistant", content: own.content });
      else told.pop();
    }
    return told;
  }

  tell(turn) {
    const [first, second] = turn.answers;
    const words = turn.answers.map((answer) => `${answer.name} answered with ${answer.ids.length} tokens`).join("; ");
    const verdict = turn.inTurn ? compare(first, second) : "";
    turn.verdict.textContent = verdict;
    turn.verdict.hidden = !verdict;
    byId("said").textContent = verdict ? `${words}. ${verdict}` : `${words}.`;
    if (verdict) this.onMeasured(first.model, { drafted: first.speed, plain: second.speed });
    this.follow();
  }

  setRunning(controller) {
    this.running = controller;
    byId("send").hidden = controller !== null;
    byId("stop").hidden = controller === null;
    if (controller === null) byId("prompt").focus();
  }
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, words]) => make("option", { value }, words)));
  if (options.some(([value]) => value === before)) select.value = before;
}

/** Waits for all, and only then fails with what failed first. */
async function all(promises) {
  const failed = (await Promise.allSettled(promises)).find((each) => each.status === "rejected");
  if (failed) throw failed.reason;
}
