// The page: loads the network, takes a picture, shows its classes. Everything stays in this browser.

import { evalCrop } from "./crop.mjs";
import { decode, Mistake, unturned } from "./picture.mjs";

const RUNTIME = "ort.wasm.bundle.min.mjs"; // of the npm package onnxruntime-web, and its WebAssembly:
const WEBASSEMBLY = "ort-wasm-simd-threaded.wasm";
const SHOWN = 5; // classes

const element = (id) => document.getElementById(id);

// --- the network ------------------------------------------------------------------------------------

/** Return what model.json says, and run: a function of the network's input that gives each class's probability. */
async function load() {
  const about = await (await get("model.json")).json();
  element("about").textContent = `${about.model}, ${about.classes.length.toLocaleString("en")} classes`;
  const ort = await import(`./${RUNTIME}`).catch(() => {
    throw new Mistake(`ONNX Runtime Web is missing: put ${RUNTIME} and ${WEBASSEMBLY} beside this page.`);
  });
  ort.env.wasm.proxy = true; // it works in a worker, so that the page stays alive
  const graph = await download("model.onnx");
  say("Starting the network.");
  const session = await ort.InferenceSession.create(graph).catch((error) => {
    throw new Mistake(`The network does not start (${error.message}); is ${WEBASSEMBLY} beside this page?`);
  });
  const run = async (pixels) => {
    const images = new ort.Tensor("uint8", new Uint8Array(pixels), [1, about.size, about.size, 3]);
    return (await session.run({ images })).probabilities.data;
  };
  return { ...about, run };
}

async function get(name) {
  const answer = await fetch(name).catch(() => ({ ok: false, statusText: "no answer" }));
  if (!answer.ok) throw new Mistake(`${name} cannot be loaded: ${answer.statusText || answer.status}.`);
  return answer;
}

async function download(name) {
  const reader = (await get(name)).body.getReader();
  const parts = [];
  let bytes = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    bytes += part.value.length;
    say(`Loading the network: ${(bytes / 1e6).toFixed(1)} MB.`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// --- what the user sees -----------------------------------------------------------------------------

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

function showPicture(blob, name) {
  URL.revokeObjectURL(element("picture").src);
  element("picture").src = URL.createObjectURL(blob);
  element("picture").alt = name;
}

function showInput(pixels, size) {
  const canvas = element("input");
  [canvas.width, canvas.height] = [size, size];
  const image = new ImageData(size, size);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4)
    image.data.set([pixels[from], pixels[from + 1], pixels[from + 2], 255], to);
  canvas.getContext("2d").putImageData(image, 0, 0);
  element("size").textContent = `${size} x ${size}`;
}

function showClasses(probabilities, classes) {
  const likely = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const rows = likely.slice(0, SHOWN).map((i) => {
    const row = element("row").content.cloneNode(true);
    row.querySelector(".name").textContent = classes[i];
    row.querySelector(".probability").textContent = `${(100 * probabilities[i]).toFixed(2)} %`;
    row.querySelector(".bar").style.width = `${100 * probabilities[i]}%`;
    return row;
  });
  element("classes").replaceChildren(...rows);
}

// --- one picture after the other --------------------------------------------------------------------

say("Loading the network.");
const network = load();
network.then(() => say("Ready."), explain);
let work = Promise.resolve(); // the pictures that wait

/** Classify a file once those before it are done. */
function classify(file) {
  work = work.then(async () => {
    element("result").hidden = true;
    try {
      const { run, classes, ...input } = await network;
      say(`Looking at ${file.name}.`);
      const started = performance.now();
      const blob = await unturned(file);
      const { width, height, rows } = await decode(blob, file.name);
      const pixels = evalCrop(width, height, rows, input);
      const ready = performance.now();
      const probabilities = await run(pixels);
      const done = performance.now();
      showPicture(blob, file.name);
      showInput(pixels, input.size);
      showClasses(probabilities, classes);
      element("result").hidden = false;
      say(
        `${file.name}, ${width} x ${height}: ${(done - ready).toFixed(0)} ms for the network, ` +
          `${(ready - started).toFixed(0)} ms to decode and resize.`,
      );
    } catch (error) {
      explain(error);
    }
  });
}

function explain(error) {
  say(error instanceof Mistake ? error.message : `Something went wrong: ${error.message}`, true);
}

/** Take the first file of what was dropped, pasted or chosen. */
function take(files) {
  if (files.length) classify(files[0]);
  else say("That was no file; drop a picture, or save it and choose the file.", true);
}

element("file").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
document.addEventListener("dragleave", () => element("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
