// The photograph, its caption and where the captioner looked for each word.

import type { Caption } from "./captioner";
import { byId } from "./elements";

const GAZE = [255, 214, 10]; // the colour of what was looked at, as in the pages of `hf-captioner explain`
const PACE = 350; // milliseconds between two words

const view = byId("view");
const canvas = byId<HTMLCanvasElement>("gaze");
const words = byId("words");
let caption: Caption | null = null;
let current = 0;
let timer = 0;

/** What the photograph says in the place of an image that is not seen: its caption, once it has one. */
export function showPhotograph(file: Blob): void {
  clear();
  const photo = byId<HTMLImageElement>("photo");
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = "The photograph";
  byId("result").hidden = false;
}

export function hidePhotograph(): void {
  clear();
  byId("result").hidden = true;
}

function clear(): void {
  clearTimeout(timer);
  caption = null;
  view.classList.remove("mapped");
  byId("legend").hidden = true;
  words.replaceChildren();
  for (const id of ["caption", "word", "score"]) byId(id).textContent = "";
}

/** Word by word, with the gaze; all at once for those who asked their system for less motion. */
export function showCaption(found: Caption): void {
  caption = found;
  byId<HTMLImageElement>("photo").alt = `The photograph, captioned: ${found.text}`;
  byId("legend").hidden = !found.grid;
  byId("score").textContent = judgement(found);
  found.words.forEach((word, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word.ends ? "(end)" : word.text;
    button.hidden = true;
    button.onclick = button.onmouseenter = button.onfocus = () => choose(i);
    words.append(button);
  });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) finish();
  else reveal(0);
}

function judgement({ score, needed, familiarity }: Caption): string {
  const sure = `Confidence ${percent(score)}.`;
  const known = familiarity !== null && familiarity < 0.5 ? " The photograph is unlike those that it knows." : "";
  if (score >= needed) return sure + known;
  return `${sure} The captioner asks ${percent(needed)} of itself, so take this for a guess.${known}`;
}

function percent(p: number): string {
  return p > 0 && p < 0.001 ? "less than 0.1 %" : `${(100 * p).toFixed(1)} %`;
}

function reveal(i: number): void {
  if (!caption || i >= caption.words.length) return finish();
  (words.children[i] as HTMLElement).hidden = false;
  show(i);
  timer = window.setTimeout(reveal, PACE, i + 1);
}

/** Everything is there; the words belong to the reader from now on. */
function finish(): void {
  clearTimeout(timer);
  if (!caption) return;
  for (const button of words.children) (button as HTMLElement).hidden = false;
  byId("caption").textContent = caption.text;
  show(0);
}

function choose(i: number): void {
  if (caption && byId("caption").textContent === "") finish(); // whoever takes a word does not wait for the others
  show(i);
}

function show(i: number): void {
  if (!caption) return;
  current = i;
  [...words.children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
  const word = caption.words[i];
  byId("word").textContent = `${word.ends ? "(end)" : word.text}: ${percent(word.probability)}`;
  if (caption.grid) paint(caption.maps[i], caption.grid);
}

function paint(map: number[], [rows, columns]: [number, number]): void {
  view.classList.toggle("mapped", byId<HTMLInputElement>("map").checked);
  canvas.width = columns;
  canvas.height = rows;
  const brush = canvas.getContext("2d");
  if (!brush) return;
  const pixels = brush.createImageData(columns, rows);
  const strongest = Math.max(...map, 1e-12);
  map.forEach((value, i) => pixels.data.set([...GAZE, (255 * value) / strongest], 4 * i));
  brush.putImageData(pixels, 0, 0);
}

byId("map").onchange = () => show(current);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || !caption) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || byId<HTMLDialogElement>("studio").open) return;
  finishFirst();
  const count = caption.words.length;
  (words.children[(current + step + count) % count] as HTMLElement).focus();
  event.preventDefault();
});

function finishFirst(): void {
  const at = current;
  if (byId("caption").textContent === "") finish();
  current = at;
}
