/* A convolution beside its transpose, one step at a time. Plain JavaScript, no build step.
 *
 * Both operations are the same list of links. A link (x, tap, y) says: cell y of the output gets w[tap] * x[x].
 *     convolution             one link for each output cell (i, j) and tap (u, v):  x = (i S + u D - P, j S + v D - P)
 *     transposed convolution  one link for each input cell (i, j) and tap (u, v):   y = (i S + u D - P, j S + v D - P)
 * Links that leave the map are dropped: they fall on the padding. The values, the matrix W, the columns of im2col, and what
 * lights up under the mouse all come from these links. The page explorer.md holds the frame; tests compare run() with minifcn.
 */
"use strict";
(() => {
  const LIMITS = {h: [1, 12], w: [1, 12], kh: [1, 7], kw: [1, 7], s: [1, 4], p: [0, 6], d: [1, 3], o: [0, 3]};
  const NAMES = {h: "input height", w: "input width", kh: "kernel height", kw: "kernel width", s: "stride",
                 p: "padding", d: "dilation", o: "output padding"};
  const FORMS = {scatter: "loops (gather, scatter)", matrix: "matrix (W, Wᵀ)", gemm: "GEMM (im2col, col2im)"};

  // ---- arithmetic ----

  /** Settings {h, w, kh, kw, s, p, d, o} -> the sizes of both outputs, or a sentence that says why there are none. */
  function sizes(g) {
    const reach = k => g.d * (k - 1) + 1;
    const conv = [[g.h, g.kh], [g.w, g.kw]].map(([n, k]) => Math.floor((n + 2 * g.p - reach(k)) / g.s) + 1);
    const transposed = [[g.h, g.kh], [g.w, g.kw]].map(([n, k]) => (n - 1) * g.s - 2 * g.p + reach(k) + g.o);
    const fits = [[g.h, g.kh], [g.w, g.kw]].every(([n, k]) => n + 2 * g.p >= reach(k));
    return {
      conv: fits ? conv : `the kernel reaches over ${reach(g.kh)} x ${reach(g.kw)} cells, ` +
                          `the padded input has only ${g.h + 2 * g.p} x ${g.w + 2 * g.p}`,
      transposed: g.o >= Math.max(g.s, g.d) ? "output padding must be smaller than stride or dilation"
                : Math.min(...transposed) < 1 ? "the padding removes the whole output" : transposed,
    };
  }

  /** The links of an operation and its output: {links, size: [OH, OW], y: [...], from: steps}. */
  function run(kind, g, x, k) {
    const size = sizes(g)[kind];
    if (typeof size === "string") return {error: size};
    const [steps, other] = kind === "conv" ? [size, [g.h, g.w]] : [[g.h, g.w], size];
    const links = [], y = new Array(size[0] * size[1]).fill(0);
    for (let i = 0; i < steps[0]; i++) for (let j = 0; j < steps[1]; j++)
      for (let u = 0; u < g.kh; u++) for (let v = 0; v < g.kw; v++) {
        const row = i * g.s + u * g.d - g.p, col = j * g.s + v * g.d - g.p;
        if (row < 0 || col < 0 || row >= other[0] || col >= other[1]) continue;
        const here = i * steps[1] + j, there = row * other[1] + col;
        const link = {x: kind === "conv" ? there : here, tap: u * g.kw + v, y: kind === "conv" ? here : there};
        links.push(link);
        y[link.y] += k[link.tap] * x[link.x];
      }
    return {links, size, y, steps};
  }

  // ---- state, also in the address ----

  const state = {g: {h: 3, w: 3, kh: 2, kw: 2, s: 1, p: 0, d: 1, o: 0}, x: [], k: [], form: "scatter", step: 0, timer: null};
  const count = n => Array.from({length: n}, (_, i) => i);
  const short = v => Number.isInteger(v) ? String(v) : v.toFixed(2).replace(/0+$/, "").replace("-", "−");

  function restore() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const [key, [low, high]] of Object.entries(LIMITS)) {
      const value = parseInt(given.get(key), 10);
      if (value >= low && value <= high) state.g[key] = value;
    }
    if (given.get("form") in FORMS) state.form = given.get("form");
    for (const name of ["x", "k"]) {
      const numbers = (given.get(name) || "").split(",").map(Number);
      state[name] = numbers.every(Number.isFinite) && given.get(name) ? numbers : [];
    }
  }

  /** Input and kernel have one number a cell; what is new counts 0, 1, 2, ... */
  function fill() {
    const {g} = state;
    for (const [name, n] of [["x", g.h * g.w], ["k", g.kh * g.kw]])
      state[name] = count(n).map(i => state[name][i] ?? i % 10);
  }

  function remember() {
    const {g, x, k, form} = state;
    history.replaceState(null, "", "#" + new URLSearchParams({...g, form, x: x.join(), k: k.join()}));
  }

  // ---- drawing ----

  const SVG = "http://www.w3.org/2000/svg";
  function element(tag, attributes = {}, ...children) {
    const node = tag === "svg" || tag === "rect" || tag === "text" ? document.createElementNS(SVG, tag)
                                                                   : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes))
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value); else node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  /** A map as a picture, and its cells, which light up by their class. */
  function grid(label, [rows, cols], values, enter = () => {}) {
    const side = Math.max(5, Math.min(34, Math.floor(420 / Math.max(rows, cols))));
    const picture = element("svg", {viewBox: `-1 -1 ${cols * side + 2} ${rows * side + 2}`, width: cols * side + 2, role: "img",
                                    "aria-label": `${label}, ${rows} rows, ${cols} columns`});
    const cells = count(rows * cols).map(i => {
      const [x, y] = [i % cols * side, Math.floor(i / cols) * side], text = short(values[i]);
      const cell = element("rect", {x, y, width: side, height: side, onmouseenter: () => enter(i)});
      picture.append(cell);
      if (side >= 16) picture.append(element("text", {x: x + side / 2, y: y + side / 2,
                                                      "font-size": Math.min(13, 1.7 * side / Math.max(2, text.length))}, text));
      return cell;
    });
    return {picture, cells};
  }

  /** A map to type into, and its cells. */
  function typed(name, label, [rows, cols], enter) {
    const cells = count(rows * cols).map(n => element("td", {onmouseenter: () => enter(n)}, element("input", {
      type: "text", inputmode: "decimal", value: state[name][n],
      "aria-label": `${label}, row ${Math.floor(n / cols) + 1}, column ${n % cols + 1}`,
      onchange: event => {
        const value = Number(event.target.value.replace(",", "."));
        if (Number.isFinite(value)) state[name][n] = value;
        draw();
      },
    })));
    const lines = count(rows).map(i => element("tr", {}, ...cells.slice(i * cols, (i + 1) * cols)));
    return {picture: element("table", {class: "typed", role: "presentation"}, ...lines), cells};
  }

  const light = ({cells}, indices) => cells.forEach((cell, i) => cell.classList.toggle("lit", indices.has(i)));

  /** The links of the current step: of one output cell, or, for a transposed convolution as a scatter or GEMM, one input cell. */
  function current(kind, result) {
    const key = kind === "transposed" && state.form !== "matrix" ? "x" : "y";
    const total = key === "x" ? state.g.h * state.g.w : result.y.length;
    const at = state.step % total;
    return {key, at, total, links: result.links.filter(link => link[key] === at)};
  }

  const place = (i, cols) => `${Math.floor(i / cols)},${i % cols}`;

  /** The sum or the painting of this step, in numbers. */
  function sentence(kind, result, {key, at, links}) {
    const {g, x, k} = state, cols = result.size[1];
    const product = l => `w[${place(l.tap, g.kw)}]·x[${place(l.x, g.w)}] = ${short(k[l.tap])}·${short(x[l.x])}`;
    if (key === "y") {
      const sum = links.map(l => `${short(k[l.tap])}·${short(x[l.x])}`).join(" + ") || "nothing (only padding)";
      return `y[${place(at, cols)}] = ${sum} = ${short(result.y[at])}`;
    }
    const painted = links.map(l => `y[${place(l.y, cols)}] += ${product(l)}`);
    return `x[${place(at, g.w)}] = ${short(x[at])} paints ${links.length} cells: ` + painted.slice(0, 4).join("; ") +
           (painted.length > 4 ? "; ..." : "");
  }

  /** What the form adds to the maps: a row of W, or a column of im2col. */
  function extra(kind, result, {key, at, links}) {
    const {g, x, k} = state, taps = g.kh * g.kw;
    if (state.form === "matrix") {
      const row = new Array(g.h * g.w).fill(0);
      links.forEach(l => { row[l.x] += k[l.tap]; });
      const name = kind === "conv" ? "W" : "Wᵀ";
      return figure(`row ${at} of ${name} (${result.y.length} x ${g.h * g.w}), laid over the input: y = ${name} x`,
                    grid(`row of ${name}`, [g.h, g.w], row), new Set(links.map(l => l.x)));
    }
    if (state.form === "gemm") {
      const column = new Array(taps).fill(0);
      if (kind === "conv") links.forEach(l => { column[l.tap] = x[l.x]; });
      else column.forEach((_, tap) => { column[tap] = k[tap] * x[at]; });
      return figure(kind === "conv" ? `column ${at} of im2col(x) (${taps} x ${result.y.length}): y = w cols`
                                    : `column ${at} of wᵀ x (${taps} x ${g.h * g.w}): col2im adds it to y`,
                    grid("column", [g.kh, g.kw], column), new Set(links.map(l => l.tap)));
    }
    return "";
  }

  function figure(caption, map, lit = new Set()) {
    light(map, lit);
    return element("figure", {}, map.picture, element("figcaption", {}, caption));
  }

  function panel(kind) {
    const {g, x, k} = state, result = run(kind, g, x, k), title = kind === "conv" ? "conv2d" : "conv_transpose2d";
    const box = element("section", {"aria-label": title}, element("h3", {}, title));
    if (result.error) {
      box.append(element("p", {class: "none"}, `No output: ${result.error}.`));
      return box;
    }
    const now = current(kind, result), say = element("p", {class: "say", "aria-live": state.timer ? "off" : "polite"});
    const enter = key => at => point({key, at, links: result.links.filter(link => link[key] === at)});
    const maps = {x: typed("x", "input", [g.h, g.w], enter("x")), tap: typed("k", "kernel", [g.kh, g.kw], enter("tap")),
                  y: grid("output", result.size, result.y, enter("y"))};
    const added = element("div", {class: "maps"});
    function point(chosen) {                      // light what belongs to one cell: the hovered one, or the step's
      for (const key in maps) light(maps[key], new Set(chosen.links.map(link => link[key])));
      say.textContent = chosen.key === "tap" ? `w[${place(chosen.at, g.kw)}] is used ${chosen.links.length} times`
                                             : sentence(kind, result, chosen);
      if (chosen.key === now.key) added.replaceChildren(extra(kind, result, chosen));
    }
    box.append(
      element("div", {class: "maps"}, figure(`x: ${g.h} x ${g.w}`, maps.x), figure(`w: ${g.kh} x ${g.kw}`, maps.tap)),
      element("div", {class: "maps output", tabindex: 0, role: "group", onkeydown: walk,
                      "aria-label": `output of ${title}; arrow keys choose the step`},
              figure(`y: ${result.size.join(" x ")}`, maps.y)), added, say);
    box.addEventListener("mouseleave", () => point(now));
    point(now);
    return box;
  }

  function walk(event) {
    const move = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!move) return;
    event.preventDefault();
    const label = event.currentTarget.getAttribute("aria-label");
    go(move);
    document.querySelector(`#explorer [aria-label="${label}"]`)?.focus();
  }

  // ---- controls ----

  function steps() {                              // of the longer of the two: the other one starts again
    const totals = ["conv", "transposed"].map(kind => [kind, run(kind, state.g, state.x, state.k)])
      .filter(([, result]) => !result.error).map(([kind, result]) => current(kind, result).total);
    return Math.max(1, ...totals);
  }

  function go(move) {
    state.step = (state.step + move + steps()) % steps();
    draw();
  }

  function play() {
    if (state.timer) clearInterval(state.timer);
    state.timer = state.timer ? null : setInterval(() => go(1), 900);
    draw();
  }

  function controls() {
    const numbers = Object.entries(LIMITS).map(([key, [min, max]]) => element("label", {}, NAMES[key], element("input", {
      type: "number", min, max, value: state.g[key], onchange: event => {
        state.g[key] = Math.max(min, Math.min(max, Math.round(Number(event.target.value)) || min));
        state.step = 0;
        state.x = state.x.slice(0, state.g.h * state.g.w);
        draw();
      }})));
    const forms = element("select", {"aria-label": "form", onchange: event => { state.form = event.target.value; draw(); }},
      ...Object.entries(FORMS).map(([key, text]) => element("option", {value: key, ...(key === state.form && {selected: ""})}, text)));
    const button = (text, onclick) => element("button", {type: "button", onclick}, text);
    return element("form", {class: "controls", onsubmit: event => event.preventDefault()}, ...numbers,
      element("label", {}, "form", forms),
      element("span", {class: "buttons"}, button("◀ back", () => go(-1)), button(state.timer ? "❚❚ pause" : "▶ play", play),
        button("step ▶", () => go(1)), element("output", {}, `step ${state.step + 1} of ${steps()}`)));
  }

  function draw() {
    fill();
    state.step %= steps();
    remember();
    const root = document.getElementById("explorer"), focused = document.activeElement;
    const path = root.contains(focused) ? [...root.querySelectorAll("input, select, button")].indexOf(focused) : -1;
    root.replaceChildren(controls(), element("div", {class: "panels"}, panel("conv"), panel("transposed")));
    if (path >= 0) root.querySelectorAll("input, select, button")[path]?.focus();
  }

  window.explorer = {sizes, run, LIMITS};
  document.addEventListener("DOMContentLoaded", () => {
    if (document.getElementById("explorer")) { restore(); draw(); }
  });
})();
