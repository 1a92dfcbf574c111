// The whole text, each token on the colour of the unit's value. Drawn on canvas, and only the lines in
// view: two thousand coloured pieces of markup cost more to paint than a step may take. So do a thousand
// calls of canvas: the colours of a line are an image one pixel high, stretched, and the words of a line,
// which stay while the values change and the text scrolls, are kept in either ink.

import { inks, palette, placeOf } from "./colour.js";
import { field, finish, series, shown, store } from "./data.js";
import { brief, el, fit, picture, slices } from "./paint.js";

const LINE = 30;
const MOST = 420; // height, in pixels, before the text scrolls
const SHEET = 4; // lines that a page does not part

// Where each token stands: x and line. Lines break after a space or a newline, between any two words,
// and inside a run of characters only if it is longer than a line.
export function flow(words, widths, room) {
  const chars = words.every((word) => [...word].length <= 1);
  const place = [];
  let [x, line, run] = [0, 0, 0]; // run: the first token that may not be parted from this one
  for (let t = 0; t < words.length; t++) {
    if (x + widths[t] > room && x > 0) {
      const whole = chars && run < t && place[run].x > 0; // the run fits on a line of its own
      const from = whole ? run : t;
      line += 1;
      x = 0;
      for (let k = from; k < t; k++) {
        place[k] = { x, line };
        x += widths[k];
      }
      run = from;
    }
    place.push({ x, line });
    x += widths[t];
    if (words[t] === "\n") {
      line += 1;
      x = 0;
    }
    if (!chars || words[t].trim() === "") run = t + 1;
  }
  return place;
}

export function text(host, app) {
  const spoken = el("p", { className: "hidden" });
  const box = el("div", { className: "text-box" });
  const canvas = el("canvas", {
    id: "text",
    role: "img",
    ariaLabel: "The text, each token on the colour of the value; the same text is above in words",
  });
  const spacer = el("div");
  const mark = el("div", { className: "text-mark", ariaHidden: "true" }); // around the chosen token
  const paper = el("div", { className: "text-paper" }); // the text where it is printed
  box.append(canvas, spacer, paper, mark);
  host.append(spoken, box);
  host.hidden = app.page.meta.kind === "series"; // the ribbon draws it, and its colours
  let made = null; // the layout: {key, chars, said, spots, lines, starts}
  const laid = store(8); // layouts, by sequence and width
  let ask = null; // what to draw: {key, values, scaled}
  const inked = store(192); // the words of a line in an ink; six times as many as are in view
  const ahead = slices();
  let scrolled = 0; // to ask the box would lay out the page

  box.addEventListener("scroll", () => {
    if (ask === null || box.scrollTop === scrolled) return; // drawn already
    scrolled = box.scrollTop;
    finish(paint());
  });
  canvas.addEventListener("click", (event) => {
    const line = Math.floor((event.offsetY + scrolled) / LINE);
    const t = made.spots.findIndex((at) => at.line === line && event.offsetX < at.left + at.width + 2);
    if (t >= 0) app.set({ t, playing: false });
  });

  function lay(words) {
    const room = app.width(box) - 4;
    const key = `${app.state.batch} ${room}`; // the models read the same words
    if (made !== null && made.key === key) return;
    made = laid(key, () => layout(key, words, room));
    spoken.textContent = words.join(made.chars ? "" : " ");
  }

  function layout(key, words, room) {
    const chars = words.every((word) => [...word].length <= 1);
    const said = words.map((word) => (chars && word === " " ? " " : brief(word)));
    const context = canvas.getContext("2d");
    context.font = app.style()[chars ? "text" : "textWords"];
    const known = new Map();
    const measure = (word) => {
      if (!known.has(word))
        known.set(word, Math.ceil(context.measureText(word).width) + (chars ? 2 : 10));
      return known.get(word);
    };
    const widths = said.map(measure);
    // the place of each token in the whole text
    const spots = flow(words, widths, room).map(({ x, line }, t) => {
      const width = widths[t] - (chars ? 0 : 3);
      return { left: x + 2, top: line * LINE + 2, width, height: LINE - 4, line };
    });
    const lines = spots[spots.length - 1].line + 1;
    const starts = [0]; // the first token of each line, and the end of the last
    spots.forEach(({ line }, t) => {
      while (starts.length <= line) starts.push(t);
    });
    starts.push(spots.length);
    return { key, chars, said, spots, lines, starts };
  }

  // What is in view: {top, width, height, lines, tokens}, lines and tokens as [first, last + 1].
  function view() {
    const { starts } = made;
    const tall = made.lines * LINE;
    const height = app.state.printing ? tall : Math.min(MOST, tall);
    const top = app.state.printing ? 0 : scrolled;
    box.style.height = `${height}px`;
    spacer.style.height = `${tall - height}px`;
    const lines = [Math.floor(top / LINE), Math.min(made.lines, Math.ceil((top + height) / LINE))];
    const tokens = lines.map((line) => starts[line]);
    return { top, width: app.width(box), height, lines, tokens };
  }

  // Colours the place of each token.
  function fill(context, { top, width, lines: [a, b], tokens }, colours) {
    const ratio = window.devicePixelRatio || 1;
    const image = new ImageData(Math.round(width * ratio), b - a);
    const out = new Uint32Array(image.data.buffer);
    for (let t = tokens[0]; t < tokens[1]; t++) {
      const { left, width: wide, line } = made.spots[t];
      const row = (line - a) * image.width;
      const pixel = colours[placeOf(ask.scaled, ask.values[t])];
      out.fill(pixel, row + Math.round(left * ratio), row + Math.round((left + wide) * ratio));
    }
    const rows = picture(image);
    for (let line = a; line < b; line++) {
      const y = line * LINE + 2 - top;
      context.drawImage(rows, 0, line - a, image.width, 1, 0, y, width, LINE - 4);
    }
  }

  // Writes tokens from .. to - 1 on a paper whose upper edge is `top` of the whole text.
  function write(context, top, from, to, inkOf) {
    context.font = app.style()[made.chars ? "text" : "textWords"];
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (let t = from; t < to; t++) {
      const at = made.spots[t];
      context.fillStyle = inkOf(t);
      context.fillText(made.said[t], at.left + at.width / 2, at.top - top + LINE / 2 - 1);
    }
  }

  // The words of a line in an ink.
  function writing(line, ink, width) {
    return inked(`${made.key} ${line} ${ink}`, () => {
      const paper = fit(el("canvas"), width, LINE);
      write(paper, line * LINE, made.starts[line], made.starts[line + 1], () => ink);
      return paper.canvas;
    });
  }

  // Copies the words of a line from one token to another, in one ink.
  function copy(context, now, ink, from, to) {
    const [begin, end] = [made.spots[from], made.spots[to]];
    const words = writing(begin.line, ink, now.width);
    const ratio = words.width / now.width;
    const [left, width, height] = [begin.left, end.left + end.width - begin.left, LINE - 4];
    const part = [left, begin.top - begin.line * LINE, width, height].map((size) => size * ratio);
    context.drawImage(words, ...part, left, begin.top - now.top, width, height);
  }

  // Canvases of a few lines each: a page may end between two of them, and not within one.
  function* sheets({ width, lines: [first, last] }, colours, inkOf) {
    for (let a = first; a < last; a += SHEET) {
      const b = Math.min(last, a + SHEET);
      const tokens = [made.starts[a], made.starts[b]];
      const context = fit(el("canvas", { ariaHidden: "true" }), width, (b - a) * LINE);
      fill(context, { top: a * LINE, width, lines: [a, b], tokens }, colours);
      write(context, a * LINE, ...tokens, inkOf); // sharp on paper
      yield context.canvas;
    }
  }

  // Draws what is in view, with a place to stop after each piece.
  function* paint() {
    const now = view();
    const colours = palette(app.theme(), ask.scaled.kind);
    const inkOf = (t) => colours.ink[placeOf(ask.scaled, ask.values[t])];
    if (app.state.printing) {
      paper.replaceChildren(...sheets(now, colours.fill, inkOf));
      return;
    }
    paper.replaceChildren();
    const context = fit(canvas, now.width, now.height);
    fill(context, now, colours.fill);
    const [a, b] = now.tokens;
    for (let t = a, from = a; t < b; t++) {
      const more = t + 1 < b && made.spots[t + 1].line === made.spots[t].line;
      if (more && inkOf(t + 1) === inkOf(t)) continue;
      copy(context, now, inkOf(t), from, t);
      from = t + 1;
      yield;
    }
  }

  // The words in view in either ink, which another field or theme asks for.
  function* both() {
    const { width, lines } = view();
    const { key } = made;
    for (let line = lines[0]; line < lines[1]; line++) {
      for (const ink of inks) {
        if (made.key !== key) return;
        writing(line, ink, width);
        yield;
      }
    }
  }

  return function* draw(s) {
    if (host.hidden || field(app.page, s, s.field, s.grad) === null) return;
    lay(app.words());
    yield;
    const at = made.spots[s.t];
    for (const name of ["left", "top", "width", "height"]) mark.style[name] = `${at[name]}px`;
    const outside = at.top < scrolled || at.top + at.height > scrolled + MOST;
    const moves = outside && ask?.t !== s.t;
    if (moves) {
      const most = Math.max(0, made.lines * LINE - MOST);
      scrolled = Math.max(0, Math.min(most, at.top - MOST / 2));
    }
    const key = shown(s, app.row(), app.theme(), s.printing, made.key);
    const same = ask?.key === key && !moves && !s.printing;
    const values = series(app.page, s, s.field, app.row(), s.grad);
    ask = { key: null, values, scaled: app.scale(), t: s.t };
    if (!same) {
      yield* paint();
      if (!s.printing) ahead(both(), () => {});
    }
    if (moves) box.scrollTop = scrolled;
    ask.key = key;
  };
}
