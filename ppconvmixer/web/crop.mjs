// From a picture of any size to the square that the network takes: what eval_crop in transforms.py makes with
// Pillow, to the bit. The short side is resized, two passes of an antialiasing filter, and the middle cut out.

const BITS = 22; // after the point of Pillow's weights, which are whole numbers
const STRIP = 256; // rows that are read at once: a phone's browser has no room for a whole photograph

const FILTERS = {
  bilinear: [1, (x) => 1 - Math.abs(x)],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => sinc(x) * sinc(x / 3)],
};

function cubic(x) {
  const a = -0.5;
  return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : (((x - 5) * x + 8) * x - 4) * a;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/**
 * Return the network's input, RGB, as a Uint8ClampedArray of size x size x 3.
 *
 * @param width, height - of the picture
 * @param rows - function (top, count) that returns rows of the picture, RGBA, a byte a channel; A is not looked at
 * @param input - size, crop_pct and interpolation, as model.json has them
 */
export function evalCrop(width, height, rows, { size, crop_pct, interpolation }) {
  const short = Math.floor(size / crop_pct);
  const long = Math.trunc((short * Math.max(width, height)) / Math.min(width, height));
  const columns = taps(width, width <= height ? short : long, size, interpolation);
  const lines = taps(height, width <= height ? long : short, size, interpolation);
  const top = lines[0].first;
  const bottom = lines[size - 1].first + lines[size - 1].weights.length;

  const narrow = new Uint8ClampedArray((bottom - top) * size * 3);
  let to = 0;
  for (let start = top; start < bottom; start += STRIP) {
    const count = Math.min(STRIP, bottom - start);
    const strip = rows(start, count);
    for (let row = 0; row < count; row++)
      for (const { first, weights } of columns)
        for (let channel = 0; channel < 3; channel++)
          narrow[to++] = weigh(strip, 4 * (row * width + first) + channel, 4, weights);
  }

  const square = new Uint8ClampedArray(size * size * 3);
  to = 0;
  for (const { first, weights } of lines)
    for (let place = 0; place < 3 * size; place++)
      square[to++] = weigh(narrow, 3 * size * (first - top) + place, 3 * size, weights);
  return square;
}

/** Return the sum of every step-th value from a place on, each by its weight; it may lie beyond 0 and 255. */
function weigh(values, from, step, weights) {
  let sum = 1 << (BITS - 1);
  for (let i = 0; i < weights.length; i++, from += step) sum += values[from] * weights[i];
  return sum >> BITS;
}

/**
 * Return what the middle pixels of a line are made of when it is brought from one length to another.
 *
 * @returns for each of them, the first pixel of the old line that counts, and the weights of that and those after it
 */
function taps(before, after, size, interpolation) {
  const scale = before / after;
  const start = halfToEven((after - size) / 2);
  const found = [];
  if (interpolation === "nearest") {
    let centre = scale / 2;
    for (let i = 0; i < start + size; i++, centre += scale) // added up, for Pillow's rounding errors
      found.push({ first: Math.floor(centre), weights: [1 << BITS] });
    return found.slice(start);
  }
  const [reach, filter] = FILTERS[interpolation];
  const stretch = Math.max(scale, 1); // the filter grows with the reduction
  for (let i = start; i < start + size; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach * stretch + 0.5), before);
    const weights = [];
    for (let x = first; x < end; x++) {
      const distance = (x - centre + 0.5) / stretch;
      weights.push(Math.abs(distance) < reach ? filter(distance) : 0);
    }
    const sum = weights.reduce((a, b) => a + b, 0);
    found.push({ first, weights: weights.map((weight) => roundAway((weight / sum) * (1 << BITS))) });
  }
  return found;
}

function roundAway(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

function halfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}
