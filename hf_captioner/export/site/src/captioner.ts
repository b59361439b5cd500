// The two graphs of an exported captioner, run by onnxruntime-web on one thread of WebAssembly.

import * as ort from "onnxruntime-web/wasm";
import type { Pixels } from "./picture";
import { search, type Decoder } from "./search";
import type { ModelSettings, SearchSettings } from "./settings";
import type { Tokenizer } from "./tokenizer";

export interface Caption {
  text: string;
  score: number; // mean probability of its words, times familiarity
  needed: number; // the score below which the captioner would rather say nothing
  familiarity: number | null; // how much the photograph is like those that it knows, from 0 to 1
  words: { text: string; probability: number; ends: boolean }[];
  grid: [number, number] | null; // rows and columns of the maps
  maps: number[][]; // of each word, (rows * columns)
}

/** What the whole folder holds, read. */
export interface Files {
  encoder: Uint8Array;
  decoder: Uint8Array;
  tokenizer: Tokenizer;
  search: SearchSettings;
  model: ModelSettings;
}

type Tensors = Record<string, ort.Tensor>;

// 8-bit filters are restored once, when the file is loaded; without this the vision model's graph cannot be loaded.
const OPTIONS: ort.InferenceSession.SessionOptions = {
  executionProviders: ["wasm"],
  extra: { session: { disable_quant_qdq: "1" } },
};

/** Gives onnxruntime-web its program, which is then not fetched again. */
export function useRuntime(wasm: Uint8Array): void {
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // more would need a host that sends the headers of cross-origin isolation
}

export class Captioner {
  private constructor(
    private readonly encoder: ort.InferenceSession,
    private readonly decoder: ort.InferenceSession,
    private readonly files: Omit<Files, "encoder" | "decoder">,
  ) {}

  static async load({ encoder, decoder, ...files }: Files): Promise<Captioner> {
    return new Captioner(
      await ort.InferenceSession.create(encoder, OPTIONS),
      await ort.InferenceSession.create(decoder, OPTIONS),
      files,
    );
  }

  /**
   * @param pixels of one image
   * @param beams in place of the captioner's own number
   * @param seen is called when the vision model is through
   */
  async caption({ values, size }: Pixels, beams: number | null, seen: () => void): Promise<Caption> {
    const encoded = { ...(await this.encoder.run({ pixel_values: new ort.Tensor("float32", values, [1, 3, ...size]) })) };
    seen();
    const grid = Array.from(encoded.grid.data as BigInt64Array, Number) as [number, number];
    const familiarity = encoded.familiarity ? (encoded.familiarity.data[0] as number) : null;
    const settings = { ...this.files.search, num_beams: beams ?? this.files.search.num_beams };
    const temperature = this.files.model.score_temperature ?? 1;
    const said = await search(this.decoding(encoded), settings, temperature);

    const tokens = said.tokens.slice(1);
    const real = tokens.map((_, i) => i).filter((i) => tokens[i] !== settings.pad_token_id);
    const ends = [settings.eos_token_id].flat();
    const regions = grid[0] * grid[1];
    const mean = real.reduce((sum, i) => sum + said.logs[i], 0) / real.length;
    return {
      text: this.files.tokenizer.decode(real.map((i) => tokens[i])),
      score: Math.exp(mean) * (familiarity ?? 1),
      needed: this.files.model.min_score ?? 0,
      familiarity,
      words: real.map((i) => ({
        text: this.files.tokenizer.text(tokens[i]),
        probability: Math.exp(said.logs[i]),
        ends: ends.includes(tokens[i]),
      })),
      grid: said.maps.length ? grid : null,
      // Prefix tokens, which have no place in the grid, stand in front of the regions that do.
      maps: said.maps.length ? real.map((i) => Array.from(said.maps[i].slice(-regions))) : [],
    };
  }

  /** Runs the decoder's graph and keeps the rows' states between words. */
  private decoding(encoded: Tensors): Decoder {
    const fixed = this.decoder.inputNames.filter((name) => name in encoded && !name.startsWith("state."));
    const image = Object.fromEntries(fixed.map((name) => [name, encoded[name]]));
    let states: Tensors = Object.fromEntries(Object.entries(encoded).filter(([name]) => name.startsWith("state.")));
    let first = true;
    return async (tokens, parents) => {
      const rows = first ? tokens.map(() => 0) : parents; // the image has one state to begin with
      first = false;
      const given: Tensors = { ...image };
      for (const [name, value] of Object.entries(states)) given[name] = taken(value, rows);
      given.input_ids = new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]);
      const outputs = await this.decoder.run(given);
      states = Object.fromEntries(Object.keys(states).map((name) => [name, outputs[`new_${name}`]]));
      return {
        logits: split(outputs.logits, tokens.length),
        weights: outputs.attention ? split(outputs.attention, tokens.length) : null,
      };
    };
  }
}

/** (1, k, ...) and rows (n) -> (1, n, ...) */
function taken(tensor: ort.Tensor, rows: number[]): ort.Tensor {
  const parts = split(tensor, tensor.dims[1]);
  const size = parts[0].length;
  const values = new Float32Array(rows.length * size);
  rows.forEach((row, i) => values.set(parts[row], i * size));
  return new ort.Tensor("float32", values, [1, rows.length, ...tensor.dims.slice(2)]);
}

/** (1, k, ...) -> its k rows, flat. */
function split(tensor: ort.Tensor, rows: number): Float32Array[] {
  const values = tensor.data as Float32Array;
  const size = values.length / rows;
  return Array.from({ length: rows }, (_, row) => values.slice(row * size, (row + 1) * size));
}
