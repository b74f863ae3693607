// From the pixels of an image to the numbers that the model takes.
//
// Each step rounds as those of PIL and numpy do, which `focalnet_jax.predict` calls: a canvas
// would resize otherwise. So page and command give a model the same numbers.
"use strict";

// How far each filter reaches, and its weights, as in Resample.c of PIL.
const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const filters = {
  box: { reach: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { reach: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
  hamming: {
    reach: 1,
    weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI))),
  },
  bicubic: {
    reach: 2,
    weight(x) {
      const a = -0.5, z = Math.abs(x);
      if (z < 1) return ((a + 2) * z - (a + 3)) * z * z + 1;
      return z < 2 ? (((z - 5) * z + 8) * z - 4) * a : 0;
    },
  },
  lanczos: { reach: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};
const BITS = 22; // after the point of a weight

// For each pixel of a side that is resized: where its pixels begin, and their weights.
function weightsOf(from, to, { reach, weight }) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach * stretch + 0.5), from);
    const weights = Array.from({ length: end - first }, (_, tap) =>
      weight((tap + first - centre + 0.5) * (1 / stretch)));
    const total = weights.reduce((sum, value) => sum + value, 0);
    const whole = weights.map((value) =>
      Math.trunc((value / total) * 2 ** BITS + (value < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(whole) };
  });
}

// Resizes one side. `step` and `line` say how far two pixels along the side, and across it,
// lie from each other; those of the result are called `toStep` and `toLine`.
function resizeSide(pixels, filter, { from, to, lines, step, line, toStep, toLine }) {
  const result = new Uint8ClampedArray(lines * to * 3);
  weightsOf(from, to, filter).forEach(({ first, weights }, index) => {
    for (let across = 0; across < lines; across++) {
      const start = across * line + first * step;
      for (let colour = 0; colour < 3; colour++) {
        let sum = 2 ** (BITS - 1);
        for (let tap = 0, at = start + colour; tap < weights.length; tap++, at += step) {
          sum += pixels[at] * weights[tap];
        }
        result[across * toLine + index * toStep + colour] = sum >> BITS;
      }
    }
  });
  return result;
}

function nearest({ pixels, width, height }, toWidth, toHeight) {
  const positions = (from, to) => {
    const step = from / to; // PIL adds it up, and so do its roundings.
    let at = step * 0.5;
    return Array.from({ length: to }, () => {
      const position = Math.trunc(at);
      at += step;
      return position;
    });
  };
  const columns = positions(width, toWidth);
  const result = new Uint8ClampedArray(toWidth * toHeight * 3);
  positions(height, toHeight).forEach((row, y) => columns.forEach((column, x) => {
    const at = (row * width + column) * 3;
    result.set(pixels.subarray(at, at + 3), (y * toWidth + x) * 3);
  }));
  return { pixels: result, width: toWidth, height: toHeight };
}

function resizeWidth({ pixels, width, height }, to, filter) {
  if (width === to) return { pixels, width, height };
  const sides = { from: width, to, lines: height };
  const steps = { step: 3, line: 3 * width, toStep: 3, toLine: 3 * to };
  return { pixels: resizeSide(pixels, filter, { ...sides, ...steps }), width: to, height };
}

function resizeHeight({ pixels, width, height }, to, filter) {
  if (height === to) return { pixels, width, height };
  const sides = { from: height, to, lines: width };
  const steps = { step: 3 * width, line: 3, toStep: 3 * width, toLine: 3 };
  return { pixels: resizeSide(pixels, filter, { ...sides, ...steps }), width, height: to };
}

// Resizes an RGB image, one side after the other. Numbers are rounded in between, so the order
// counts: it is that of PIL 13.
function resize(image, width, height, interpolation) {
  if (interpolation === "nearest") return nearest(image, width, height);
  const filter = filters[interpolation];
  const isTall = image.height - height > Math.max(2 * (image.width - width), 0);
  return isTall
    ? resizeWidth(resizeHeight(image, height, filter), width, filter)
    : resizeHeight(resizeWidth(image, width, filter), height, filter);
}

// As `round` in Python: halves become even.
function roundHalf(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

const heightAndWidth = ({ image_size: size }) => (Array.isArray(size) ? size : [size, size]);

// Width and height of an image after resizing, as `EvalTransform` has them.
function scaledSize(width, height, preprocessing) {
  const [toHeight, toWidth] = heightAndWidth(preprocessing)
    .map((side) => Math.trunc(side / preprocessing.crop));
  if (preprocessing.squash) return [toWidth, toHeight];
  const sides = [width, height];
  if (toHeight === toWidth) {
    return sides.map((side) => Math.trunc((toHeight * side) / Math.min(width, height)));
  }
  const ratio = Math.min(width / toWidth, height / toHeight);
  return sides.map((side) => roundHalf(side / ratio));
}

// Cuts out the middle; what lies outside of the image is black.
function cropMiddle({ pixels, width, height }, toWidth, toHeight, round) {
  const left = round((width - toWidth) / 2);
  const upper = round((height - toHeight) / 2);
  const result = new Uint8ClampedArray(toWidth * toHeight * 3);
  const first = Math.max(left, 0);
  const end = Math.min(left + toWidth, width);
  for (let y = Math.max(-upper, 0); y < Math.min(toHeight, height - upper); y++) {
    const row = (y + upper) * width;
    const cut = pixels.subarray((row + first) * 3, (row + end) * 3);
    result.set(cut, (y * toWidth + first - left) * 3);
  }
  return { pixels: result, width: toWidth, height: toHeight };
}

// Prepares an image as `focalnet_jax.preprocessing.Preprocessing` does.
//
// `image` has `pixels`, RGB with a byte for each colour. The result has the pixels that the
// model sees, in grey if it takes one channel, and `values`, `[channels, height, width]`.
function prepare(image, preprocessing) {
  const { mean, std, interpolation } = preprocessing;
  const [height, width] = heightAndWidth(preprocessing);
  const scaled = scaledSize(image.width, image.height, preprocessing);
  const round = preprocessing.floor_offsets ? Math.floor : roundHalf;
  const seen = cropMiddle(resize(image, ...scaled, interpolation), width, height, round);
  const count = width * height;
  if (mean.length === 1) {
    for (let at = 0; at < 3 * count; at += 3) {
      const [red, green, blue] = seen.pixels.subarray(at, at + 3);
      seen.pixels.fill((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16, at, at + 3);
    }
  }
  const values = new Float32Array(mean.length * count);
  mean.forEach((_, channel) => {
    const [m, s] = [mean[channel], std[channel]].map(Math.fround);
    const table = Float32Array.from({ length: 256 }, (_, level) =>
      Math.fround(Math.fround(level / 255) - m) / s);
    for (let at = 0; at < count; at++) {
      values[channel * count + at] = table[seen.pixels[3 * at + channel]];
    }
  });
  return { ...seen, values };
}
