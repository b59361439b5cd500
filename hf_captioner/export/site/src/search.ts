// Greedy search with one beam, and beam search as transformers does it with several, for one image. The same as
// OnnxCaptioner.search, in single precision where numpy computes in it.

import type { SearchSettings } from "./settings";

const NEVER = -1e9; // the score of a beam that is not there; finite, as in transformers

/** What a row has said, and how it came to it. */
export interface Said {
  tokens: number[]; // with the start
  logs: number[]; // of each generated token, of the model itself, calibrated
  maps: Float32Array[]; // of each generated token, its weights over the regions; none of a captioner that does not attend
}

export interface Step {
  logits: Float32Array[]; // of each row, (vocabulary)
  weights: Float32Array[] | null; // of each row, (regions)
}

/** One word of every row: takes the rows' last tokens, and which rows of the step before they continue. */
export type Decoder = (tokens: number[], parents: number[]) => Promise<Step>;

export async function search(decode: Decoder, settings: SearchSettings, temperature: number): Promise<Said> {
  const beams = settings.num_beams;
  const ends = new Set([settings.eos_token_id].flat());
  const keep = beams === 1 ? 1 : (1 + Math.max(1, ends.size)) * beams;
  const start: Said = { tokens: [settings.decoder_start_token_id], logs: [], maps: [] };
  let rows = Array.from({ length: beams }, () => start);
  let parents = rows.map((_, row) => row);
  // All beams begin alike, so the first alone counts at first.
  let scores: number[] = rows.map((_, row) => (row === 0 ? 0 : NEVER));
  let done = rows.map((said) => ({ said, score: NEVER, real: false }));
  let open = true; // can a running beam still be among the best?

  for (let place = 0; place < settings.max_new_tokens; place++) {
    const { logits, weights } = await decode(
      rows.map((row) => row.tokens[row.tokens.length - 1]),
      parents,
    );
    const vocabulary = logits[0].length;
    const total = new Float32Array(beams * vocabulary);
    const shown: Float32Array[] = [];
    for (let row = 0; row < beams; row++) {
      const logs = logSoftmax(logits[row], 1);
      shown.push(temperature === 1 ? logs : logSoftmax(logits[row], temperature));
      const part = total.subarray(row * vocabulary, (row + 1) * vocabulary);
      for (let token = 0; token < vocabulary; token++) part[token] = logs[token] + scores[row];
      for (const token of forbidden(rows[row].tokens, place, ends, settings)) part[token] = -Infinity;
    }
    const running = largest(total, keep).map((chosen, rank) => {
      const parent = Math.floor(chosen / vocabulary);
      const token = chosen % vocabulary;
      const before = rows[parent];
      const said: Said = {
        tokens: [...before.tokens, token],
        logs: [...before.logs, shown[parent][token]],
        maps: weights ? [...before.maps, weights[parent]] : [],
      };
      const ended = ends.has(token) || place + 1 === settings.max_new_tokens;
      return { said, parent, ended, rank, score: total[chosen] };
    });

    // What has ended, if it was among the first, competes with what ended before.
    const full = settings.early_stopping === true && done.every((one) => one.real);
    const length = Math.fround((place + 1) ** settings.length_penalty);
    const candidates = running.map(({ said, ended, rank, score }) => {
      const real = ended && rank < beams && open && !full;
      return { said, real, score: real ? Math.fround(score / length) : -Infinity };
    });
    const both = [...done, ...candidates];
    done = largest(both.map((one) => one.score), beams).map((at) => both[at]);

    // The others go on, in their order.
    const order = [...running.filter((row) => !row.ended), ...running.filter((row) => row.ended)].slice(0, beams);
    rows = order.map((row) => row.said);
    parents = order.map((row) => row.parent);
    scores = order.map((row) => Math.fround(row.score + (row.ended ? NEVER : 0)));

    const never = settings.early_stopping === "never" && settings.length_penalty > 0;
    const reach = Math.fround((never ? settings.max_new_tokens : place + 1) ** settings.length_penalty);
    const best = Math.fround(Math.max(...scores) / reach);
    const worst = Math.min(...done.map((one) => one.score));
    open &&= done.some((one) => best > (one.real ? worst : NEVER));
    if (beams === 1) open &&= !done[0].real; // greedy search ends where the most probable word is the end
    const enough = settings.early_stopping === true && done.every((one) => one.real);
    if (!open || enough || running.every((row) => row.ended)) break;
  }
  return done[0].said;
}

/** Tokens that may not follow what a row has said. */
function forbidden(tokens: number[], place: number, ends: Set<number>, settings: SearchSettings): number[] {
  const found = [...settings.suppress_tokens];
  if (place < settings.min_new_tokens) found.push(...ends);
  const size = settings.no_repeat_ngram_size;
  if (size > 0) {
    const last = tokens.length - size + 1; // where the end begins that, with another token, would be such a sequence
    for (let start = 0; start < last; start++) {
      let same = true;
      for (let i = 0; i < size - 1; i++) same &&= tokens[start + i] === tokens[last + i];
      if (same) found.push(tokens[start + size - 1]);
    }
  }
  return found;
}

export function logSoftmax(logits: Float32Array, temperature: number): Float32Array {
  const scaled = logits.map((value) => value / Math.fround(temperature));
  const most = scaled.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let i = 0; i < scaled.length; i++) {
    scaled[i] -= most;
    sum += Math.exp(scaled[i]);
  }
  const log = Math.log(sum);
  return scaled.map((value) => value - log);
}

/** Places of the largest values, largest first; of equal ones the first. */
export function largest(values: ArrayLike<number>, count: number): number[] {
  const found: number[] = [];
  for (let place = 0; place < values.length; place++) {
    if (found.length === count && !(values[place] > values[found[count - 1]])) continue;
    let at = found.length;
    while (at > 0 && values[place] > values[found[at - 1]]) at--;
    found.splice(at, 0, place);
    if (found.length > count) found.pop();
  }
  return found;
}
