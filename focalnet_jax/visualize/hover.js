// What the page does when somebody points at the image. `data` is what hover_page.py writes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const [height, width] = data.size;

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// Rows of numbers that are stored as signed bytes times a scale.
function numbers(stored) {
  const values = Float32Array.from(new Int8Array(bytes(stored.bytes).buffer));
  return values.map((value) => value * stored.scale);
}

// There are too many numbers to give them to Math.max as arguments.
function largest(values) {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30);
}

const blocks = data.blocks.map((block) => {
  const gates = numbers(block.gates), modulator = numbers(block.modulator);
  const most = { gate: largest(gates), value: largest(modulator) };
  return { ...block, gates, modulator, most };
});
const colours = { signed: bytes(data.colours.signed), unsigned: bytes(data.colours.unsigned) };

const element = (id) => document.getElementById(id);
const look = element("look");
let place = { row: Math.floor(height / 2), column: Math.floor(width / 2) };
let isPinned = false;

function options(select, names) {
  select.replaceChildren(...names.map((name, index) => new Option(name, index)));
}

const current = () => blocks[element("block").value];

// The row of the arrays of a block for a pixel; the last one where pixels are left out.
function position(block, { row, column }) {
  const y = Math.min(Math.floor(row / block.stride[0]), block.height - 1);
  const x = Math.min(Math.floor(column / block.stride[1]), block.width - 1);
  return { y, x, index: y * block.width + x };
}

function vector(values, index, length) {
  return values.subarray(index * length, (index + 1) * length);
}

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

const norm = (values) => Math.sqrt(dot(values, values));

// The map that is laid over the image: numbers by position, and their least and greatest.
function overlay(block, kind) {
  const count = block.height * block.width;
  const at = (index) => vector(block.modulator, index, block.channels);
  const values = new Float32Array(count);
  if (kind === "norm") {
    for (let i = 0; i < count; i++) values[i] = norm(at(i));
    const least = values.reduce((least, value) => Math.min(least, value));
    return { values, least, most: largest(values), kind: "unsigned" };
  }
  if (kind === "similarity") {
    const own = at(position(block, place).index);
    for (let i = 0; i < count; i++) {
      values[i] = dot(own, at(i)) / Math.max(norm(own) * norm(at(i)), 1e-30);
    }
    return { values, least: -1, most: 1, kind: "signed" };
  }
  const level = Number(kind);
  for (let i = 0; i < count; i++) values[i] = block.gates[i * block.levels.length + level];
  return { values, least: -block.most.gate, most: block.most.gate, kind: "signed" };
}

const picture = new Image();
picture.src = data.image;

function drawImage() {
  const context = look.getContext("2d");
  const scale = look.width / width;
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, look.width, look.height);
  const block = current();
  const kind = element("overlay").value;
  const strength = element("strength").value / 100;
  const [down, right] = block.stride.map((pixels) => pixels * scale);
  if (kind !== "none") {
    const { values, least, most, kind: table } = overlay(block, kind);
    context.globalAlpha = strength;
    values.forEach((value, index) => {
      const share = most > least ? (value - least) / (most - least) : 0;
      const entry = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
      context.fillStyle = `rgb(${colours[table].slice(entry, entry + 3).join(" ")})`;
      const x = index % block.width, y = Math.floor(index / block.width);
      context.fillRect(x * right, y * down, right, down);
    });
    context.globalAlpha = 1;
    element("scale").textContent =
      `The colours go from ${least.toPrecision(3)} to ${most.toPrecision(3)}.`;
  } else {
    element("scale").textContent = "";
  }
  const { x, y } = position(block, place);
  for (const [colour, line] of [["black", 4], ["white", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(x * right, y * down, right, down);
  }
}

function drawGates() {
  const block = current();
  const { index, x, y } = position(block, place);
  const gates = vector(block.gates, index, block.levels.length);
  const length = norm(vector(block.modulator, index, block.channels));
  element("where").textContent =
    `${block.name}, row ${y}, column ${x}: the modulator has a norm of ${length.toPrecision(3)}`;
  element("gates").replaceChildren(...block.levels.map((name, level) => {
    const share = 50 * Math.abs(gates[level]) / block.most.gate;
    const row = document.createElement("div");
    const bar = document.createElement("i");
    row.className = "gate";
    bar.style.width = `${share}%`;
    bar.style.left = `${gates[level] < 0 ? 50 - share : 50}%`;
    bar.style.background = `var(--${gates[level] < 0 ? "negative" : "positive"})`;
    const [label, track, value] = ["span", "div", "output"].map((tag) =>
      document.createElement(tag));
    label.textContent = name;
    value.textContent = gates[level].toFixed(3);
    track.append(bar);
    row.append(label, track, value);
    return row;
  }));
}

// A line for each channel of the modulator, up for numbers above zero.
function drawValues() {
  const block = current();
  const values = vector(block.modulator, position(block, place).index, block.channels);
  const canvas = element("values");
  const style = getComputedStyle(document.documentElement);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const middle = canvas.height / 2, step = canvas.width / block.channels;
  values.forEach((value, channel) => {
    const size = (value / block.most.value) * middle;
    context.fillStyle = style.getPropertyValue(value < 0 ? "--negative" : "--positive");
    context.fillRect(channel * step, middle - Math.max(size, 0), Math.max(step, 1),
      Math.abs(size));
  });
}

function draw() {
  drawImage();
  drawGates();
  drawValues();
}

function move(row, column) {
  place = {
    row: Math.min(Math.max(row, 0), height - 1),
    column: Math.min(Math.max(column, 0), width - 1),
  };
  draw();
}

function point(event) {
  const box = look.getBoundingClientRect();
  move(
    Math.floor((event.clientY - box.top) / box.height * height),
    Math.floor((event.clientX - box.left) / box.width * width),
  );
}

look.addEventListener("pointermove", (event) => isPinned || point(event));
look.addEventListener("pointerdown", (event) => {
  // A finger drags over the image; it has no other way to move.
  if (event.pointerType !== "touch") isPinned = !isPinned;
  point(event);
});
look.addEventListener("keydown", (event) => {
  const steps = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  };
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  isPinned = true;
  element("where").setAttribute("aria-live", "polite");  // but not for a mouse
  const block = current(), { y, x } = position(block, place);
  move((y + step[0]) * block.stride[0], (x + step[1]) * block.stride[1]);
});

function changeBlock() {
  const chosen = element("overlay").value || "norm";
  const levels = current().levels.map((name, level) => new Option(`gate: ${name}`, level));
  element("overlay").replaceChildren(
    new Option("norm of the modulator", "norm"),
    new Option("similarity to this place", "similarity"),
    ...levels,
    new Option("nothing", "none"),
  );
  const isThere = [...element("overlay").options].some((option) => option.value === chosen);
  element("overlay").value = isThere ? chosen : "norm";
  draw();
}

look.width = 2 * Math.max(Math.round(480 / width), 1) * width;
look.height = look.width / width * height;
element("values").width = 1200;
element("values").height = 200;
options(element("block"), blocks.map((block) => block.name));
element("block").value = data.first;
element("block").addEventListener("change", changeBlock);
element("overlay").addEventListener("change", draw);
element("strength").addEventListener("input", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
picture.decode().then(changeBlock);
