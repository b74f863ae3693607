// What the page shows, and what people do with it.
"use strict";

const element = (id) => document.getElementById(id);

function made(tag, properties = {}, ...children) {
  const result = Object.assign(document.createElement(tag), properties);
  result.append(...children);
  return result;
}

// Tells people what goes on. The style sheet knows it by `data-state`: "loading", "ready",
// "computing", "done" or "failed".
function say(text, { state, progress = null }) {
  element("status").textContent = text;
  element("progress").hidden = progress === null;
  element("progress").value = progress ?? 0;
  document.body.dataset.state = state;
}

function fail(error) {
  say(error instanceof Problem ? error.message : String(error), { state: "failed" });
  if (!(error instanceof Problem)) throw error;
}

// --- Images

// The pixels of a file, RGB as they are stored: no colour profile changes them.
async function decode(file, name) {
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Problem(`${name} is no image that this browser can read.`);
  }
  const { width, height } = image;
  const canvas = made("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let colours;
  try {
    context.drawImage(image, 0, 0);
    colours = context.getImageData(0, 0, width, height).data;
  } catch {
    throw new Problem(`${name} has ${width} x ${height} pixels, too many for this browser.`);
  } finally {
    image.close();
  }
  const pixels = new Uint8ClampedArray(width * height * 3);
  for (let from = 0, to = 0; from < colours.length; from += 4, to += 3) {
    pixels[to] = colours[from];
    pixels[to + 1] = colours[from + 1];
    pixels[to + 2] = colours[from + 2];
  }
  return { pixels, width, height };
}

let turns = 0;
let shown = null; // the prepared image, and the results of the model

// Shows what the model says of an image. If there is another one meanwhile, that one counts.
async function show(file, name) {
  const turn = ++turns;
  try {
    const ask = await model;
    if (turn !== turns) return;
    say(`The model looks at ${name}.`, { state: "computing" });
    const image = prepare(await decode(file, name), about.preprocessing);
    if (turn !== turns) return;
    const shape = [1, about.preprocessing.mean.length, image.height, image.width];
    const { milliseconds, results } =
      await ask("run", { values: image.values, shape }, [image.values.buffer]);
    if (turn !== turns) return;
    shown = { image, results };
    drawAll();
    const seconds = Number((milliseconds / 1000).toPrecision(2));
    say(`${name}: computed in ${seconds} seconds.`, { state: "done" });
  } catch (error) {
    if (turn === turns) fail(error);
  }
}

// --- What is shown

const className = (index) => about.classes?.[index] ?? `class ${index}`;

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

function drawClasses(logits) {
  const probabilities = softmax(logits);
  if (probabilities.some(Number.isNaN)) {
    throw new Problem("The model gives no probabilities: some of its numbers are not finite.");
  }
  const best = [...probabilities.keys()]
    .sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  element("classes").replaceChildren(...best.map((index) => {
    const probability = probabilities[index];
    const bar = made("i");
    bar.style.width = `${100 * probability}%`;
    const number = made("data", { value: probability });
    number.textContent = `${(100 * probability).toFixed(2)}%`;
    return made("li", {}, made("div", {}, made("span", {}, className(index)), number),
      made("div", {}, bar));
  }));
}

// A canvas of pixels, RGB.
function picture({ pixels, width, height }) {
  const canvas = made("canvas", { width, height });
  const colours = new ImageData(width, height);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    colours.data.set([pixels[from], pixels[from + 1], pixels[from + 2], 255], to);
  }
  canvas.getContext("2d").putImageData(colours, 0, 0);
  return canvas;
}

const tables = {
  signed: bytesOf(about.colours.signed),
  unsigned: bytesOf(about.colours.unsigned),
};

// A map in colours, which go from `least` to `most`.
function coloured({ values, width, height, least, most, table }) {
  const pixels = new Uint8ClampedArray(3 * values.length);
  values.forEach((value, index) => {
    const share = most > least ? (value - least) / (most - least) : 0;
    const entry = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
    pixels.set(tables[table].subarray(entry, entry + 3), 3 * index);
  });
  return picture({ pixels, width, height });
}

function grey({ pixels, width, height }) {
  const result = new Uint8ClampedArray(pixels.length);
  for (let at = 0; at < pixels.length; at += 3) {
    result.fill((pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3, at, at + 3);
  }
  return { pixels: result, width, height };
}

// The map over the grey image; positions of the map are as large as its stride.
function tile(caption, map, [down, right]) {
  const { image } = shown;
  const zoom = Math.max(Math.round(320 / image.width), 1);
  const canvas = made("canvas", { width: zoom * image.width, height: zoom * image.height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.scale(zoom, zoom);
  context.drawImage(picture(grey(image)), 0, 0);
  context.globalAlpha = element("strength").value / 100;
  context.drawImage(coloured(map), 0, 0, map.width * right, map.height * down);
  return made("figure", {}, canvas, made("figcaption", {}, caption));
}

// The lengths of the vectors of a map, `[channels, positions]`.
function lengths(data, channels) {
  const count = data.length / channels;
  return Float32Array.from({ length: count }, (_, at) => {
    let sum = 0;
    for (let channel = 0; channel < channels; channel++) sum += data[channel * count + at] ** 2;
    return Math.sqrt(sum);
  });
}

const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const short = (number) => Number(number.toPrecision(3));

function drawBlock({ name, stride }) {
  const { data: gates, dims: [, levels, height, width] } = shown.results[`${name}/gates`];
  const greatest = most(gates.map(Math.abs));
  const tiles = Array.from({ length: levels }, (_, level) => tile(
    level === levels - 1 ? "gate, global" : `gate, level ${level + 1}`,
    {
      values: gates.subarray(level * height * width, (level + 1) * height * width),
      width, height, least: -greatest, most: greatest, table: "signed",
    },
    stride,
  ));
  const modulator = shown.results[`${name}/modulator`];
  const norms = lengths(modulator.data, modulator.dims[1]);
  const range = { least: least(norms), most: most(norms) };
  const map = { values: norms, width, height, ...range, table: "unsigned" };
  tiles.push(tile("modulator, norm", map, stride));
  const heading = made("h3");
  heading.textContent = `${name}, ${height} x ${width} positions: gates from `
    + `${short(least(gates))} to ${short(most(gates))}, norms from ${short(range.least)} to `
    + `${short(range.most)}`;
  return made("div", {}, heading, ...tiles);
}

function drawMaps() {
  element("maps").replaceChildren(...about.blocks.map(drawBlock));
}

function drawAll() {
  const { image, results } = shown;
  drawClasses(results.logits.data);
  const look = element("look");
  [look.width, look.height] = [image.width, image.height];
  look.getContext("2d").drawImage(picture(image), 0, 0);
  element("size").textContent = `${image.height} x ${image.width} pixels`;
  element("result").hidden = element("inside").hidden = false;
  drawMaps();
}

// --- What people do

element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) show(target.files[0], target.files[0].name);
  target.value = ""; // Else nothing would happen if somebody chose the same file again.
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("choose").classList.add("over");
});
document.addEventListener("dragleave", () => element("choose").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault(); // The browser would open the file in place of the page.
  element("choose").classList.remove("over");
  take(event.dataTransfer.files, "What was dropped");
});
document.addEventListener("paste", (event) =>
  take(event.clipboardData.files, "What was pasted"));

function take(files, what) {
  if (files.length) show(files[0], files[0].name);
  else fail(new Problem(`${what} is no file of an image.`));
}

function showExample({ name, data, type }) {
  show(new Blob([bytesOf(data)], { type }), name);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch { // There is a % in it that stands for itself.
    return text;
  }
}

function offerExamples() {
  element("examples").replaceChildren(...about.examples.map((example) => {
    const { name, data, type } = example;
    const image = made("img", { src: `data:${type};base64,${data}`, alt: "" });
    const button = made("button", { type: "button", onclick: () => showExample(example) });
    button.append(image, name);
    return button;
  }));
  // index.html#NAME shows an example at once.
  const wanted = decoded(location.hash.slice(1));
  const example = about.examples.find(({ name }) => name === wanted);
  if (example) showExample(example);
}

element("strength").addEventListener("input", () => shown && drawMaps());
element("title").textContent = document.title = about.title;
element("about").textContent = about.text;
element("runtime").textContent = about.runtime;
const total = Object.values(about.files).reduce((sum, { size }) => sum + size, 0);

function tellProgress(read) {
  const megabytes = [read, total].map((bytes) => (bytes / 1e6).toFixed(1));
  const text = `The model is being loaded: ${megabytes.join(" of ")} MB.`;
  say(text, { state: "loading", progress: read / total });
}

tellProgress(0);
const model = loadModel(tellProgress);
model.then(() => turns || say("The model is ready.", { state: "ready" }), fail);
offerExamples();
