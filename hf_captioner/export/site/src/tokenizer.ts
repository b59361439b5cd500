// From tokens to text, as the decoders of a tokenizer.json say. Captions are only read here, so nothing is encoded.

interface Decoder {
  type: string;
  replacement?: string;
  prepend_scheme?: string;
  decoders?: Decoder[];
}

interface TokenizerFile {
  model: { vocab: Record<string, number> };
  added_tokens: { id: number; content: string; special: boolean }[];
  decoder: Decoder;
}

export class Tokenizer {
  private readonly names: string[] = [];
  private readonly special = new Set<number>();
  private readonly join: (tokens: string[]) => string;

  constructor(file: TokenizerFile) {
    for (const [name, id] of Object.entries(file.model.vocab)) this.names[id] = name;
    for (const token of file.added_tokens) {
      this.names[token.id] = token.content;
      if (token.special) this.special.add(token.id);
    }
    this.join = joiner(file.decoder);
  }

  /** The text of tokens, without special ones. */
  decode(tokens: number[]): string {
    return this.join(tokens.filter((token) => !this.special.has(token)).map((token) => this.names[token] ?? "")).trim();
  }

  /** What one token adds to a caption, a special token by its name. */
  text(token: number): string {
    return this.decode([token]) || (this.names[token] ?? "");
  }
}

function joiner(decoder: Decoder): (tokens: string[]) => string {
  const kinds = decoder.type === "Sequence" ? (decoder.decoders ?? []) : [decoder];
  if (kinds[0]?.type === "ByteLevel") return fromBytes;
  if (kinds.length !== 1 || kinds[0].type !== "Metaspace") {
    throw new Error(`the tokenizer's decoder must be Metaspace or ByteLevel, got ${decoder.type}`);
  }
  const space = kinds[0].replacement ?? "\u2581";
  const dropped = kinds[0].prepend_scheme !== "never";
  return (tokens) => tokens.map((token, i) => token.replaceAll(space, i === 0 && dropped ? "" : " ")).join("");
}

// Byte-level tokens write every byte as a visible character: itself where it is visible, or else one from U+0100 on.
const BYTES = new Map<string, number>();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  BYTES.set(String.fromCharCode(visible ? byte : next++), byte);
}

function fromBytes(tokens: string[]): string {
  const bytes = [...tokens.join("")].map((character) => BYTES.get(character) ?? 63);
  return new TextDecoder().decode(new Uint8Array(bytes));
}
