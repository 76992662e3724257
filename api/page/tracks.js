/** A trace as tracks: of each target its rounds and their parts, of each draft replica its passes. */

const SHOWN = 8; // rounds of the target whose last one ended last
const PAUSE_US = 50_000; // between two rounds: what was before such a pause is not shown

/** trace: as /debug/trace tells it. Of a target's track its rounds and their parts, of a draft replica's its passes. */
export function tracks(trace) {
  const byProcess = new Map();
  for (const event of trace.traceEvents) {
    if (event.ph === "M") byProcess.set(event.pid, track(event.args.name));
    else byProcess.get(event.pid).slices.push({ ...event, end: event.ts + event.dur });
  }
  const all = [...byProcess.values()];
  for (const each of all) sort(each);
  const [from, to] = shownTime(all.map((each) => each.rounds));
  for (const each of all) {
    each.shown = each.slices.filter((slice) => slice.end > from && slice.ts < to);
    const inside = (slice) => Math.min(slice.end, to) - Math.max(slice.ts, from);
    const busy = each.shown.filter((slice) => slice.whole).reduce((sum, slice) => sum + inside(slice), 0);
    each.busy = to > from ? busy / (to - from) : 0;
    Object.assign(each, { from, to });
  }
  return all;
}

/** From the first to the end of the last of some rounds that followed each other. */
function shownTime(roundsOfAll) {
  const ended = (rounds) => rounds.at(-1)?.end ?? 0;
  const rounds = roundsOfAll.reduce((best, each) => (ended(each) > ended(best) ? each : best), []).slice(-SHOWN);
  if (!rounds.length) return [0, 0];
  const cut = rounds.findLastIndex((round, at) => at > 0 && round.ts - rounds[at - 1].end > PAUSE_US);
  return [rounds[Math.max(cut, 0)].ts, ended(rounds)];
}

const track = (name) => ({ name, target: null, slices: [], rounds: [] });

function sort(each) {
  for (const slice of each.slices) {
    slice.isRound = slice.name.startsWith("round ");
    slice.whole = slice.isRound || "targets" in slice.args;
    if (!slice.isRound) continue;
    each.target = each.name.replace(/ \d+$/, "");
    each.rounds.push({ ts: slice.ts, end: slice.end, name: slice.name, ...slice.args });
  }
}
