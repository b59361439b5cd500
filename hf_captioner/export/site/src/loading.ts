// Fetches what a captioner needs, and tells how far it is.

import wasmAddress from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { Captioner, useRuntime } from "./captioner";
import { searchSettings, type ImageSettings } from "./settings";
import { Tokenizer } from "./tokenizer";

export interface Loaded {
  captioner: Captioner;
  images: ImageSettings;
}

/**
 * @param folder the address of the page's folder
 * @param progress is told how much of everything is there, from 0 to 1
 * @param fetched is called when all of it is
 */
export async function load(folder: string, progress: (part: number) => void, fetched: () => void): Promise<Loaded> {
  // Sizes are listed, because hosts compress what they send and then do not say how much it will be.
  const sizes: Record<string, number> = JSON.parse(text(await fetchBytes(new URL("files.json", folder).href, () => {})));
  const whole = Object.values(sizes).reduce((a, b) => a + b, 0);
  let sum = 0;
  const count = (bytes: number) => progress(Math.min((sum += bytes) / whole, 1));
  const model = (name: string) => fetchBytes(new URL(`model/${name}`, folder).href, count);
  const [wasm, encoder, decoder, ...texts] = await Promise.all([
    fetchBytes(wasmAddress, count),
    model("onnx/encoder_model_quantized.onnx"),
    model("onnx/decoder_model_quantized.onnx"),
    model("tokenizer.json"),
    model("generation_config.json"),
    model("config.json"),
    model("processor_config.json"),
  ]);
  fetched();
  const [tokenizer, search, config, processor] = texts.map((bytes) => JSON.parse(text(bytes)));
  useRuntime(wasm);
  const captioner = await Captioner.load({
    encoder,
    decoder,
    tokenizer: new Tokenizer(tokenizer),
    search: searchSettings(search),
    model: config,
  });
  return { captioner, images: processor.image_processor };
}

async function fetchBytes(address: string, count: (bytes: number) => void): Promise<Uint8Array> {
  const name = new URL(address).pathname.split("/").pop();
  let response: Response;
  try {
    // Asks the host whether it has another file by now: graphs of two versions of a page do not fit together.
    response = await fetch(address, { cache: "no-cache" });
  } catch {
    throw new Error(`${name} could not be fetched; is there a connection?`);
  }
  if (!response.ok || !response.body) throw new Error(`${name} is not there (the host answered ${response.status})`);
  const parts: Uint8Array[] = [];
  const reader = response.body.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    parts.push(next.value);
    count(next.value.length);
  }
  const bytes = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
