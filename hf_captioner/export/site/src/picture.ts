// From a file to what the vision model reads.

import { Resizer } from "./resize";
import type { ImageSettings } from "./settings";

export interface Pixels {
  values: Float32Array; // (3, H, W)
  size: [number, number]; // H, W
}

const STRIP = 256; // rows at a time: a canvas of a whole photograph is too large for some phones

/** A file of an image -> (3, H, W), as CaptionerImageProcessor makes it: upright, on white where it is transparent. */
export async function pixelsOf(file: Blob, settings: ImageSettings): Promise<Pixels> {
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  try {
    const { width, height } = settings.do_resize ? settings.size : bitmap;
    const resizer = new Resizer(bitmap.width, bitmap.height, width, height, settings.resample);
    const canvas = new OffscreenCanvas(bitmap.width, Math.min(STRIP, bitmap.height));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new Error("this browser has no canvas to read an image with");
    context.imageSmoothingEnabled = false;
    for (let top = 0; top < bitmap.height; top += STRIP) {
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, -top);
      resizer.add(context.getImageData(0, 0, bitmap.width, Math.min(STRIP, bitmap.height - top)).data);
    }
    return { values: scaled(resizer.finish(), settings), size: [height, width] };
  } finally {
    bitmap.close();
  }
}

/** (H, W, 3) from 0 to 255 -> (3, H, W), in single precision at every step, as numpy computes it. */
function scaled(bytes: Uint8Array, settings: ImageSettings): Float32Array {
  const count = bytes.length / 3;
  const values = new Float32Array(bytes.length);
  const factor = Math.fround(settings.rescale_factor);
  for (let channel = 0; channel < 3; channel++) {
    for (let place = 0; place < count; place++) {
      let value = bytes[3 * place + channel];
      if (settings.do_rescale) value = Math.fround(value * factor);
      if (settings.do_normalize) {
        const mean = Math.fround(settings.image_mean[channel]);
        value = Math.fround(value - mean) / Math.fround(settings.image_std[channel]);
      }
      values[channel * count + place] = value;
    }
  }
  return values;
}
