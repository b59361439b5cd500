// What the page and its worker say to each other.

import type { Caption } from "./captioner";

export type ToWorker =
  | { kind: "load"; folder: string } // the address of the page's folder, with a slash at its end
  | { kind: "caption"; job: number; file: Blob; beams: number | null };

export type FromWorker =
  | { kind: "loading"; part: number } // of all bytes, from 0 to 1
  | { kind: "preparing" } // all is there and is being made ready
  | { kind: "ready" }
  | { kind: "not loaded"; reason: string }
  | { kind: "looking"; job: number }
  | { kind: "wording"; job: number }
  | { kind: "captioned"; job: number; caption: Caption }
  | { kind: "unreadable"; job: number; reason: string }
  | { kind: "failed"; job: number; reason: string };
