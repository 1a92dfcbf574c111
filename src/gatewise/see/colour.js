// Colours of values. Gates, 0 to 1: one hue from pale to deep. Signed values: orange below zero, blue
// above, neutral at zero, equal lightness at equal size; told apart under the common colour
// blindnesses. Interpolated in OKLab, so equal steps look equal.

const stops = {
  light: {
    gate: ["#f3f1ea", "#b5dcc6", "#55ac9a", "#13766f", "#06403f"],
    signed: ["#8a3200", "#d9722a", "#f6bd8b", "#f4f2ec", "#9cc8ec", "#3485c7", "#0b3f7d"],
  },
  dark: {
    gate: ["#22242a", "#1d4a4b", "#1f7f76", "#52bfa5", "#c9f5dc"],
    signed: ["#ffc592", "#e8843a", "#7d431c", "#26272c", "#204a73", "#4a97dc", "#b3dcff"],
  },
};

// The curve of each field, the same everywhere: Okabe and Ito's palette, tuned for contrast.
export const hues = {
  light: { i: "#00805c", f: "#c04a00", g: "#a8467f", o: "#9a6b00", c: "#005fa8", h: "#24262b" },
  dark: { i: "#2fc79a", f: "#ff8a4c", g: "#e58ac0", o: "#e8b93e", c: "#62b2f5", h: "#eceae4" },
};

const bad = { light: [201, 196, 208], dark: [82, 74, 92] }; // NaN and infinity

function oklab(hex) {
  const linear = [1, 3, 5].map((k) => {
    const v = parseInt(hex.slice(k, k + 2), 16) / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  const [r, g, b] = linear;
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function rgb([L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((v) => {
    const u = v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055;
    return Math.round(255 * Math.min(1, Math.max(0, u)));
  });
}

const NOWHERE = 256; // the place of NaN and infinity

// 256 colours between stops, and one for what is no number: bytes r g b for each.
function ramp(hexes, nowhere) {
  const labs = hexes.map(oklab);
  const out = new Uint8Array(257 * 3);
  out.set(nowhere, 3 * NOWHERE);
  for (let k = 0; k < 256; k++) {
    const place = (k / 255) * (labs.length - 1);
    const at = Math.min(labs.length - 2, Math.floor(place));
    out.set(rgb(labs[at].map((v, n) => v + (place - at) * (labs[at + 1][n] - v))), 3 * k);
  }
  return out;
}

const ramps = {};
for (const theme of Object.keys(stops)) {
  const { gate, signed } = stops[theme];
  ramps[theme] = { gate: ramp(gate, bad[theme]), signed: ramp(signed, bad[theme]) };
}

// A scale: how a number becomes a place among 256 colours, zero + gain * v, and back.
//   gate: 0 .. 1    signed: -limit .. limit; with the power 1/3 the place is zero + cbrt(gain * v), so
//   that small values can be seen
export function scale(kind, limit = 1, power = 1) {
  if (kind === "gate") {
    return { kind, limit: 1, power: 1, zero: 0, gain: 255, value: (k) => k / 255 };
  }
  return {
    kind,
    limit,
    power,
    zero: 127.5,
    gain: power === 1 ? 127.5 / limit : 127.5 ** 3 / limit,
    value: (k) => limit * (power === 1 ? k / 127.5 - 1 : (k / 127.5 - 1) ** 3),
  };
}

const nearest = (k) => (!Number.isFinite(k) ? NOWHERE : k < 0 ? 0 : k >= 255 ? 255 : Math.floor(k));

const linear = ({ zero, gain }, v) => nearest(zero + gain * v + 0.5);

// A cube root for every pixel would take longer than all else in a map. The first 16 bits of a float32
// leave the place open between two neighbours: a table gives the lower, and its upper edge decides.
const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);
const lower = Uint16Array.from({ length: 1 << 16 }, (_, k) => {
  bits[0] = k < 1 << 15 ? k << 16 : (k << 16) | 0xffff; // the least of the numbers that begin so
  return nearest(128 + Math.cbrt(float[0]));
});

function cubic({ gain }, v) {
  float[0] = gain * v;
  const k = lower[bits[0] >>> 16];
  const edge = k - 127; // the place after k begins at its cube
  return k < 255 && float[0] >= edge * edge * edge ? k + 1 : k;
}

// The place of a value among the colours of its scale.
const placing = (scaled) => (scaled.power === 1 ? linear : cubic);
export const placeOf = (scaled, v) => placing(scaled)(scaled, v);

const luminance = (r, g, b) => {
  const [R, G, B] = [r, g, b].map((v) => {
    const u = v / 255;
    return u <= 0.04045 ? u / 12.92 : ((u + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * R + 0.7152 * G + 0.0722 * B;
};

const [BLACK, WHITE] = [[0, 0, 0], [255, 255, 255]]; // the inks on a colour

// A place of a scale as bytes: its colour, and the ink on it, whichever reads better: 4.5 to 1 or better.
function written(theme, kind, k) {
  const rgb = ramps[theme][kind].subarray(3 * k, 3 * k + 3);
  const L = luminance(...rgb) + 0.05;
  return { fill: rgb, ink: L / 0.05 > 1.05 / L ? BLACK : WHITE };
}

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
export const inks = [BLACK, WHITE].map(css);

// The 257 colours of a scale as pixels of an ImageData (little-endian), and the inks on them.
const palettes = new Map();
export function palette(theme, kind) {
  const key = `${theme} ${kind}`;
  if (!palettes.has(key)) {
    const all = Array.from({ length: NOWHERE + 1 }, (_, k) => written(theme, kind, k));
    const fill = Uint32Array.from(all, ({ fill: [r, g, b] }) => (255 << 24) | (b << 16) | (g << 8) | r);
    palettes.set(key, { fill, ink: all.map(({ ink }) => css(ink)) });
  }
  return palettes.get(key);
}

// Colours values into pixels[at], pixels[at + by], ...
export function paint(pixels, at, by, values, theme, scaled) {
  const { fill } = palette(theme, scaled.kind);
  const place = placing(scaled);
  for (let k = 0; k < values.length; k++) pixels[at + k * by] = fill[place(scaled, values[k])];
}

// A colour for canvas.
export const colour = (theme, scaled, v) => css(written(theme, scaled.kind, placeOf(scaled, v)).fill);

// A colour for markup, and the ink on it, for both themes: to change the theme is a matter of style alone.
const both = new Map();
export function markup(scaled, v) {
  const k = placeOf(scaled, v);
  const key = `${scaled.kind} ${k}`;
  if (!both.has(key)) {
    const [light, dark] = ["light", "dark"].map((theme) => written(theme, scaled.kind, k));
    const pair = (name) => `light-dark(${css(light[name])}, ${css(dark[name])})`;
    both.set(key, { fill: pair("fill"), ink: pair("ink") });
  }
  return both.get(key);
}
