// Loads the captioner and captions photographs beside the page, which stays usable meanwhile.

import { load, type Loaded } from "./loading";
import type { FromWorker, ToWorker } from "./messages";
import { pixelsOf, type Pixels } from "./picture";

const say = (message: FromWorker) => self.postMessage(message);
let loaded: Promise<Loaded>;
let newest = 0; // of the jobs
let queue = Promise.resolve(); // one after the other

self.onmessage = ({ data }: MessageEvent<ToWorker>) => {
  if (data.kind === "load") {
    loaded = load(
      data.folder,
      (part) => say({ kind: "loading", part }),
      () => say({ kind: "preparing" }),
    );
    loaded.then(
      () => say({ kind: "ready" }),
      (error) => say({ kind: "not loaded", reason: reasonOf(error) }),
    );
  } else {
    newest = data.job;
    queue = queue.then(() => caption(data.job, data.file, data.beams));
  }
};

async function caption(job: number, file: Blob, beams: number | null): Promise<void> {
  let found: Loaded;
  try {
    found = await loaded;
  } catch {
    return; // which was said
  }
  if (job !== newest) return;
  say({ kind: "looking", job });
  let pixels: Pixels;
  try {
    pixels = await pixelsOf(file, found.images);
  } catch (error) {
    say({ kind: "unreadable", job, reason: reasonOf(error) });
    return;
  }
  try {
    const said = await found.captioner.caption(pixels, beams, () => say({ kind: "wording", job }));
    say({ kind: "captioned", job, caption: said });
  } catch (error) {
    say({ kind: "failed", job, reason: reasonOf(error) });
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
