// Loads the model, and starts the worker that runs it. `about` is what
// `python -m focalnet_jax.demo` says of both.
"use strict";

// An error that is told to people as it is.
class Problem extends Error {}

function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = letters.charCodeAt(at);
  return bytes;
}

// --- Files that are no text lie in scripts as parts, which call `part`. A page that is opened
// --- as a file may load nothing else.

let receive;

function part(text) {
  receive(bytesOf(text));
}

function readPart(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    let found = null;
    receive = (bytes) => { found = bytes; };
    script.onload = () => {
      script.remove();
      if (found) resolve(found);
      else reject(new Problem(`${path} is damaged: write the page again.`));
    };
    script.onerror = () =>
      reject(new Problem(`${path} is missing: all files of the page have to lie beside it.`));
    script.src = path;
    document.head.append(script);
  });
}

// The bytes of each file, by its name. `onProgress` is told how many have been read.
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

// Returns a function that has the worker do one of its tasks, and promises the answer. The
// buffers in `transfer` are given away.
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
  return (task, options, transfer = []) => new Promise((resolve, reject) => {
    waiting.set(count, { resolve, reject });
    worker.postMessage({ number: count++, task, options }, transfer);
  });
}

async function loadModel(onProgress) {
  if (typeof WebAssembly === "undefined") {
    throw new Problem("This browser has no WebAssembly, or it is switched off.");
  }
  const files = await readFiles(about.files, onProgress);
  const ask = startWorker();
  await ask("load", files, Object.values(files).map(({ buffer }) => buffer));
  return ask;
}
