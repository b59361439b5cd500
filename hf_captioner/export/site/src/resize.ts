// Pillow's antialiased resize of 8-bit images (src/libImaging/Resample.c): two passes, each rounded to 8 bits. Captioners
// are trained on what it makes of a photograph, and a canvas would make something else of it.

interface Filter {
  support: number;
  weight(x: number): number;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// By Pillow's numbers, which a processor's configuration has under "resample".
const FILTERS: Record<number, Filter> = {
  1: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) }, // Lanczos
  2: { support: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) }, // bilinear
  3: { support: 2, weight: bicubic },
  4: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) }, // box
  5: { support: 1, weight: (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0) }, // Hamming
};

function bicubic(x: number): number {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

const BITS = 22; // of a weight behind the point
const HALF = 1 << (BITS - 1);

interface Weights {
  first: Int32Array; // for each place of the output, the first of the input that counts
  count: Int32Array; // and how many do
  values: Int32Array; // (output, most), fixed-point numbers
  most: number;
}

/** How each of `to` places is mixed from `from` places. */
function weightsOf(from: number, to: number, resample: number): Weights {
  const filter = FILTERS[resample];
  if (!filter) throw new Error(`resample must be a number from 1 to 5, got ${resample}`);
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const most = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(to);
  const count = new Int32Array(to);
  const values = new Int32Array(to * most);
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const low = Math.max(Math.trunc(centre - support + 0.5), 0);
    const high = Math.min(Math.trunc(centre + support + 0.5), from);
    const exact = Array.from({ length: high - low }, (_, i) => filter.weight((i + low - centre + 0.5) * (1 / stretch)));
    const sum = exact.reduce((a, b) => a + b, 0) || 1;
    first[place] = low;
    count[place] = high - low;
    exact.forEach((value, i) => {
      const scaled = (value / sum) * 2 ** BITS;
      values[place * most + i] = Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
  }
  return { first, count, values, most };
}

/**
 * Shrinks or enlarges an image, whose rows are given from top to bottom, in as many strips as are convenient: a photograph
 * of 50 million pixels is never there as a whole.
 */
export class Resizer {
  private readonly across: Weights | null;
  private readonly narrow: Uint8Array; // (height, newWidth, 3), all rows after the first pass
  private filled = 0;

  constructor(
    private readonly width: number,
    private readonly height: number,
    private readonly newWidth: number,
    private readonly newHeight: number,
    private readonly resample: number,
  ) {
    this.across = width === newWidth ? null : weightsOf(width, newWidth, resample);
    this.narrow = new Uint8Array(height * newWidth * 3);
  }

  /** Adds rows of RGBA pixels, whose opacity is not looked at. */
  add(pixels: Uint8ClampedArray): void {
    const rows = pixels.length / (4 * this.width);
    for (let row = 0; row < rows; row++, this.filled++) {
      const source = row * this.width * 4;
      const target = this.filled * this.newWidth * 3;
      for (let x = 0; x < this.newWidth; x++) {
        for (let channel = 0; channel < 3; channel++) {
          const at = source + channel;
          this.narrow[target + 3 * x + channel] = this.across ? mixed(pixels, at, 4, this.across, x) : pixels[at + 4 * x];
        }
      }
    }
  }

  /** (newHeight, newWidth, 3), when all rows are there. */
  finish(): Uint8Array {
    if (this.height === this.newHeight) return this.narrow;
    const down = weightsOf(this.height, this.newHeight, this.resample);
    const line = this.newWidth * 3;
    const result = new Uint8Array(this.newHeight * line);
    for (let y = 0; y < this.newHeight; y++) {
      for (let x = 0; x < line; x++) result[y * line + x] = mixed(this.narrow, x, line, down, y);
    }
    return result;
  }
}

/** One value of the output: places `start`, `start + step`, ... of the input, mixed and rounded to 8 bits. */
function mixed(values: ArrayLike<number>, start: number, step: number, weights: Weights, place: number): number {
  const base = place * weights.most;
  let at = start + weights.first[place] * step;
  let sum = HALF;
  for (let i = 0; i < weights.count[place]; i++, at += step) sum += values[at] * weights.values[base + i];
  return Math.min(Math.max(sum >> BITS, 0), 255);
}
