// Loads the model, and hands it to a worker. `about` is what `python -m focalnet_jax.demo`
// says of it.
"use strict";

// What is told to people as it is.
class Problem extends Error {}

function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = letters.charCodeAt(at);
  return bytes;
}

// --- Files of bytes, which lie in scripts, since a page from a disk may load nothing else.

let receive; // the function that a script of `part(...)` gives its bytes to

function part(text) {
  receive(bytesOf(text));
}

function readPart(path) {
  return new Promise((resolve, reject) => {
    const script = made("script", { src: path });
    let found = null;
    receive = (bytes) => { found = bytes; };
    script.onload = () => {
      script.remove();
      if (found) resolve(found);
      else reject(new Problem(`${path} is damaged: write the page again.`));
    };
    script.onerror = () =>
      reject(new Problem(`${path} is missing: all files of the page have to lie beside it.`));
    document.head.append(script);
  });
}

async function readFiles(files, onProgress) {
  const result = {};
  let read = 0;
  for (const [name, { parts, size }] of Object.entries(files)) {
    result[name] = new Uint8Array(size);
    let at = 0;
    for (const path of parts) {
      const bytes = await readPart(path);
      result[name].set(bytes, at);
      at += bytes.length;
      onProgress(read += bytes.length);
    }
  }
  return result;
}

// --- The worker

let ask; // asks the worker to do a task; what is in `transfer` is given away

function startWorker() {
  const address = URL.createObjectURL(new Blob([`"use strict"; (${work})();`]));
  const worker = new Worker(address);
  const waiting = new Map();
  let count = 0;
  worker.onmessage = ({ data: { number, answer, problem } }) => {
    const { resolve, reject } = waiting.get(number);
    waiting.delete(number);
    if (problem === undefined) resolve(answer);
    else reject(new Problem(problem));
  };
  worker.onerror = (event) => {
    for (const { reject } of waiting.values()) reject(new Problem(event.message));
    waiting.clear();
  };
  ask = (task, options, transfer = []) => new Promise((resolve, reject) => {
    waiting.set(count, { resolve, reject });
    worker.postMessage({ number: count++, task, options }, transfer);
  });
}

async function loadModel() {
  if (typeof WebAssembly === "undefined") {
    throw new Problem("This browser has no WebAssembly, or it is switched off.");
  }
  const total = Object.values(about.files).reduce((sum, { size }) => sum + size, 0);
  const told = (read) => say(
    `The model is being loaded: ${megabytes(read)} of ${megabytes(total)} MB.`,
    { state: "loading", progress: read / total },
  );
  told(0);
  const files = await readFiles(about.files, told);
  say("The model is being prepared.", { state: "loading" });
  startWorker();
  await ask("load", files, Object.values(files).map(({ buffer }) => buffer));
}
