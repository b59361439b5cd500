// The page: takes photographs, says what is going on, and shows what the worker finds.

import { offerCamera } from "./camera";
import { byId } from "./elements";
import type { FromWorker, ToWorker } from "./messages";
import { hidePhotograph, showCaption, showPhotograph } from "./result";

let worker: Worker;
let job = 0;
let photograph: { file: Blob; name: string } | null = null;
let ready = false;

function status(text: string): void {
  byId("status").textContent = text;
}

/** Says what went wrong; an empty text takes it back. */
function trouble(text: string): void {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

/** `?num_beams=1` in the page's address, in place of the captioner's own number. */
function beams(): number | null {
  const asked = new URLSearchParams(location.search).get("num_beams");
  if (asked === null) return null;
  if (!/^[1-9]\d?$/.test(asked)) throw new Error(`num_beams must be a whole number from 1 to 99, got ${asked}`);
  return Number(asked);
}

function send(message: ToWorker): void {
  worker.postMessage(message);
}

function start(): void {
  ready = false;
  trouble("");
  byId("again").hidden = true;
  byId("progress").hidden = false;
  status("Loading the captioner");
  worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }: MessageEvent<FromWorker>) => hear(data);
  worker.onerror = (event) => notLoaded(event.message || "the worker's program could not be fetched");
  send({ kind: "load", folder: new URL(".", document.baseURI).href });
  if (photograph) caption();
}

function notLoaded(reason: string): void {
  worker.terminate();
  status("");
  byId("progress").hidden = true;
  byId("again").hidden = false;
  trouble(`The captioner could not be loaded: ${reason}`);
}

function take(file: Blob, name: string): void {
  photograph = { file, name };
  trouble("");
  showPhotograph(file);
  caption();
}

function caption(): void {
  if (!photograph) return;
  job += 1;
  if (ready) status("Looking at the photograph");
  send({ kind: "caption", job, file: photograph.file, beams: beams() });
}

function hear(message: FromWorker): void {
  if ("job" in message && message.job !== job) return; // of a photograph that another has followed
  const name = photograph?.name ?? "";
  switch (message.kind) {
    case "loading":
      byId<HTMLProgressElement>("progress").value = message.part;
      break;
    case "preparing":
      byId("progress").removeAttribute("value"); // how long is not known
      status("Preparing the captioner");
      break;
    case "ready":
      ready = true;
      byId("progress").hidden = true;
      status(photograph ? "Looking at the photograph" : "Ready for a photograph");
      break;
    case "not loaded":
      notLoaded(message.reason);
      break;
    case "looking":
      status("Looking at the photograph");
      break;
    case "wording":
      status("Finding words");
      break;
    case "captioned":
      status("");
      showCaption(message.caption);
      // For pages that build upon this one.
      document.dispatchEvent(new CustomEvent("captioned", { detail: message.caption }));
      break;
    case "unreadable":
      status("Ready for another photograph");
      hidePhotograph();
      photograph = null;
      trouble(`${name} cannot be read as an image: ${message.reason}`);
      break;
    case "failed":
      status("Ready for another photograph");
      trouble(`${name} could not be captioned: ${message.reason}`);
      break;
  }
}

byId<HTMLInputElement>("file").onchange = ({ target }) => {
  const input = target as HTMLInputElement;
  const file = input.files?.[0];
  if (file) take(file, file.name);
  input.value = ""; // so that the same file can be chosen again
};

// Files that miss would otherwise be opened in the page's place.
let inside = 0;
document.addEventListener("dragenter", () => document.body.classList.toggle("over", ++inside > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("over", --inside > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("over");
  const file = event.dataTransfer?.files[0];
  if (file) take(file, file.name);
  else trouble("What was dropped is not a file; save the photograph first, then drop it here.");
});

byId("again").onclick = start;
offerCamera(
  (file) => take(file, "The photograph"),
  (reason) => trouble(`The camera cannot be used: ${reason}`),
);

try {
  beams();
  start();
} catch (error) {
  byId("progress").hidden = true;
  trouble((error as Error).message);
}
