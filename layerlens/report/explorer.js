(() => {
"use strict";

// Texts of a run are untrusted: they reach the page through text nodes and attributes' values only, never as markup.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("explorer-data").textContent);
const L = data.n_layers;
const SVG = "http://www.w3.org/2000/svg";
const ARRAYS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array};
const UNCURVED = {square: (x) => x * x, exponential: (x) => Math.expm1(x) / 100, straight: (x) => x};
const COLOURINGS = {
  entropy: {label: "Entropy", unit: "nats", ramp: "entropy"},
  norm_ratio: {label: "Norm ratio", unit: "", ramp: "stream"},
  io_cosine: {label: "I/O cosine", unit: "", ramp: "stream", reversed: true},
  valley_layer: {label: "Valley layer", unit: "layer", ramp: "layer", reversed: true},
  selected_layer: {label: "Selected layer", unit: "layer", ramp: "layer", reversed: true},
};
const state = {prompt: 0, token: 0, layer: L, measure: "entropy", shared: false, numbers: false};
const search = {query: "", hits: [], at: -1};
let words = [];
let shown = null; // the prompt on the page
let boxes = [];
let names = []; // what each box is called

// Data

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function inflateJson(base64) {
  return JSON.parse(new TextDecoder().decode(await inflate(base64)));
}

const loaded = new Map();

function load(index) {
  if (!loaded.has(index)) loaded.set(index, unpack(data.prompts[index]));
  return loaded.get(index);
}

async function unpack(packed) {
  const names = Object.keys(packed.columns);
  const arrays = await Promise.all(names.map(async (name) => {
    const [kind, base64] = packed.columns[name];
    return new ARRAYS[kind](await inflate(base64));
  }));
  const columns = Object.fromEntries(names.map((name, at) => [name, arrays[at]]));
  return {...packed, columns, texts: await inflateJson(packed.texts)};
}

/** A measure of a token after layer 1..L; null where it was not finite. */
function measured(prompt, measure, token, layer) {
  const step = prompt.columns[measure][token * L + layer - 1];
  if (step === data.steps) return null;
  const {curve, low, high} = data.measures[measure];
  return UNCURVED[curve](low[layer - 1] + (high[layer - 1] - low[layer - 1]) * step / (data.steps - 1));
}

/** What colours a token: a measure after the layer shown, or one of its layers. */
function colouring(prompt, token) {
  if (state.measure in data.measures) return measured(prompt, state.measure, token, state.layer);
  return prompt.columns[state.measure][token];
}

function topCode(prompt, token, layer) {
  return prompt.columns.top_token_id[token * L + layer - 1];
}

function differs(prompt, token, column) {
  return topCode(prompt, token, prompt.columns[column][token]) !== topCode(prompt, token, L);
}

// Text

const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;
const SIGNS = new Map([[" ", "·"], ["\n", "⏎"], ["\t", "⇥"], ["\r", "␍"]]);

/** A text in pieces that can all be seen: [[piece, whether it stands for something that cannot], ...]. */
function visible(text) {
  if (!text) return [["∅", true]];
  const pieces = [];
  const signs = Array.from(text);
  for (let at = 0; at < signs.length;) {
    const sign = signs[at];
    let same = 1;
    while (signs[at + same] === sign) same += 1;
    const code = sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const mark = SIGNS.get(sign) ?? (INVISIBLE.test(sign) ? `U+${code}` : null);
    if (mark) {
      pieces.push([same > 3 ? `${mark}×${same}` : mark.repeat(same), true]);
      at += same;
    } else {
      pieces.push([at === 0 && /\p{M}/u.test(sign) ? `◌${sign}` : sign, false]);
      at += 1;
    }
  }
  return pieces.reduce((joined, [piece, isMark]) => {
    const last = joined.at(-1);
    if (last && last[1] === isMark) last[0] += piece;
    else joined.push([piece, isMark]);
    return joined;
  }, []);
}

const plain = (code) => code ? visible(words[code]).map(([piece]) => piece).join("") : "nothing";

function make(name, content = "", className = "") {
  const made = document.createElement(name);
  made.textContent = content;
  if (className) made.className = className;
  return made;
}

function word(code, name = "span", className = "word") {
  const made = make(name, "", className);
  const pieces = code ? visible(words[code]) : [["∅", true]];
  made.append(...pieces.map(([piece, isMark]) => isMark ? make("span", piece, "mark") : piece));
  return made;
}

function numeral(value, measure) {
  if (value === null) return "–";
  if (value === 0) return "0";
  if (measure.endsWith("_layer")) return String(value);
  if (measure === "io_cosine") return value.toFixed(3).replace("-", "−");
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) < 0.1 ? value.toFixed(3) : value.toFixed(2);
}

// Colours

const ramps = {};

function readRamps() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["entropy", "stream", "layer"]) {
    ramps[name] = style.getPropertyValue(`--ramp-${name}`).split(",").map((stop) =>
      [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
  }
}

/** The colour at 0 (pale) .. 1 (strong) of a ramp, straight lines between its stops. */
function ramp(name, along) {
  const stops = ramps[name];
  const at = Math.min(1, Math.max(0, along)) * (stops.length - 1);
  const below = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[below].map((part, i) => Math.round(part + (stops[below + 1][i] - part) * (at - below)));
  return `rgb(${mixed.join(", ")})`;
}

/** Between which values colours run. */
function scale() {
  if (!(state.measure in data.measures)) return [Math.min(data.earliest, L - 1), L];
  const {pale, strong} = data.measures[state.measure];
  if (state.shared) return [Math.min(...pale), Math.max(...strong)];
  return [pale[state.layer - 1], strong[state.layer - 1]];
}

function strength(value, [low, high]) {
  const along = high > low ? (value - low) / (high - low) : 0;
  return COLOURINGS[state.measure].reversed ? 1 - along : along;
}

function recolour() {
  const {label, unit, ramp: name, reversed} = COLOURINGS[state.measure];
  const ends = scale();
  boxes.forEach((box, token) => {
    const value = colouring(shown, token);
    box.style.backgroundColor = value === null ? "" : ramp(name, strength(value, ends));
    box.classList.toggle("missing", value === null);
    box.lastChild.textContent = numeral(value, state.measure);
    box.setAttribute("aria-label", `${names[token]}, ${label} ${numeral(value, state.measure)}`);
  });
  const ordered = reversed ? [...ends].reverse() : ends;
  const ofLayer = state.measure in data.measures ? ` after layer ${state.shared ? "1 to " + L : state.layer}` : "";
  byId("scale-low").textContent = numeral(ordered[0], state.measure);
  byId("scale-high").textContent = numeral(ordered[1], state.measure);
  byId("scale-name").textContent = `${label}${ofLayer}${unit === "nats" ? ", nats" : ""}`;
  const stops = ramps[name].map((_, i, all) => ramp(name, i / (all.length - 1)));
  byId("scale-bar").style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
}

// The text

function drawTokens() {
  const {columns} = shown;
  const list = byId("tokens");
  const parts = [];
  boxes = [];
  names = [];
  if (columns.position[0] === 0) {
    const first = word(columns.token_id[0], "span", "token aside");
    first.setAttribute("role", "presentation");
    parts.push(first);
  }
  for (let token = 0; token < shown.n_tokens; token += 1) {
    if (columns.is_generated[token] && token > 0 && !columns.is_generated[token - 1]) {
      parts.push(aside("generated ▸"));
    }
    const code = columns.next_token_id[token];
    const box = word(code, "span", "token");
    box.append(make("span", "", "value"));
    box.setAttribute("role", "option");
    box.setAttribute("aria-selected", "false");
    box.tabIndex = -1;
    box.dataset.token = token;
    const frame = frameOf(token);
    if (frame) box.classList.add(frame);
    boxes.push(box);
    names.push(plain(code) + (frame && (frame === "replaced" ? ", replaced" : ", the valley differs")));
    parts.push(box);
    if (code && words[code].includes("\n")) parts.push(document.createElement("br"));
  }
  if (shown.n_left_out) {
    parts.push(aside(`and ${shown.n_left_out.toLocaleString("en")} more positions, not on this page`));
  }
  list.replaceChildren(...parts);
  list.scrollTop = 0;
  byId("replaced-count").textContent = `Framed ${framed().length} of ${shown.n_tokens.toLocaleString("en")}`;
}

function frameOf(token) {
  if (differs(shown, token, "selected_layer")) return "replaced";
  return differs(shown, token, "valley_layer") ? "differs" : "";
}

function aside(text) {
  const made = make("span", text, "aside");
  made.setAttribute("role", "presentation");
  return made;
}

const framed = () => boxes.flatMap((box, token) => box.matches(".replaced, .differs") ? [token] : []);

function markMatches() {
  const ends = new Set();
  for (const [prompt, first, last] of search.hits) {
    if (prompt === state.prompt) for (let token = first; token <= last; token += 1) ends.add(token);
  }
  boxes.forEach((box, token) => box.classList.toggle("match", ends.has(token)));
}

// The chosen token

function fact(name, ...content) {
  const made = make("div");
  const value = make("dd");
  value.append(...content);
  made.append(make("dt", name), value);
  return made;
}

function drawDetail() {
  const {columns} = shown;
  const {token, layer} = state;
  const at = (measure, of) => numeral(measured(shown, measure, token, of), measure);
  const code = columns.next_token_id[token];
  const valley = columns.valley_layer[token];
  const selected = columns.selected_layer[token];
  const says = (of) => [`layer ${of}: `, word(topCode(shown, token, of)), ` (${at("entropy", of)} nats)`];
  byId("chosen").replaceChildren(word(code));
  byId("spoken").textContent = `Token ${(token + 1).toLocaleString("en")} of ${shown.n_tokens.toLocaleString("en")}: `
    + `“${plain(code)}”. After layer ${layer}: entropy ${at("entropy", layer)} nats, `
    + `norm ratio ${at("norm_ratio", layer)}, I/O cosine ${at("io_cosine", layer)}, `
    + `top token “${plain(topCode(shown, token, layer))}”.`;
  const facts = [
    fact("Read before it", word(columns.token_id[token]), ` at position ${columns.position[token]}`),
    fact(`Next token, ${columns.is_generated[token] ? "emitted" : "given"}`, code ? word(code) : "nothing followed"),
    fact("Last layer", ...says(L)),
    fact(valley === L ? "Valley" : "Valley layer", ...(valley === L ? ["none: the last layer"] : says(valley))),
    fact("Selected layer", ...(selected === L ? ["the last"] : says(selected))),
    fact("Last layer’s effect", effectOfLast(token)),
  ];
  if (boxes[token].matches(".replaced, .differs")) {
    const chosen = boxes[token].matches(".replaced") ? selected : valley;
    const said = chosen === selected ? "Replaced" : "Would be replaced";
    facts.push(fact(said, word(topCode(shown, token, L)), " → ", word(topCode(shown, token, chosen))));
  }
  byId("chosen-facts").replaceChildren(...facts);
  drawPlot();
  drawLayers();
}

function effectOfLast(token) {
  if (L < 2) return "a single layer";
  const [before, last] = [L - 1, L].map((layer) => measured(shown, "entropy", token, layer));
  if (before === null || last === null) return "not finite";
  const change = `${last < before ? "−" : "+"}${numeral(Math.abs(last - before), "entropy")} nats`;
  return `${change}, ${shown.columns.perturbed[token] ? "perturbed" : "not perturbed"}`;
}

function drawLayers() {
  const {columns} = shown;
  const {token} = state;
  const rows = [];
  for (let layer = L; layer >= 1; layer -= 1) {
    const row = make("tr");
    const number = make("th", `${layer} `);
    number.scope = "row";
    if (layer === columns.valley_layer[token] && layer < L) number.append(sign("▼", "valley"));
    if (layer === columns.selected_layer[token]) number.append(sign("○", "selected"));
    const code = topCode(shown, token, layer);
    const top = word(code, "td");
    if (code === columns.next_token_id[token]) top.classList.add("same");
    row.append(number, top, ...["entropy", "norm_ratio", "io_cosine"].map((measure) =>
      make("td", numeral(measured(shown, measure, token, layer), measure))));
    row.dataset.layer = layer;
    if (layer === state.layer) row.setAttribute("aria-current", "true");
    rows.push(row);
  }
  const body = byId("layers").tBodies[0];
  body.replaceChildren(...rows);
  const current = rows[L - state.layer];
  const view = byId("layers-scroll");
  const head = byId("layers").tHead.offsetHeight;
  if (current.offsetTop - head < view.scrollTop) view.scrollTop = current.offsetTop - head;
  const below = current.offsetTop + current.offsetHeight - view.clientHeight;
  if (below > view.scrollTop) view.scrollTop = below;
}

function sign(drawn, meaning) {
  const made = make("span", drawn, `${meaning}-sign`);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", meaning);
  return made;
}

// The plot: all layers, and the window of the valley enlarged

function shape(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function niceStep(range, most) {
  const rough = Math.max(range, 1e-9) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

function drawPlot() {
  const svg = byId("plot");
  const width = Math.max(260, svg.clientWidth);
  const height = 190;
  const curve = Array.from({length: L}, (_, at) => measured(shown, "entropy", state.token, at + 1));
  const from = Math.max(1, L - data.window + 1);
  const zooms = data.window > 1 && from > 3;
  const split = zooms ? Math.round(0.58 * width) : width;
  const parts = panel(curve, 1, [0, split], height, "entropy, nats");
  if (zooms) parts.push(...panel(curve, from, [split, width], height, `last ${data.window} layers`));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `Entropy after each layer, layer ${state.layer} marked; the table below has numbers`);
  svg.replaceChildren(...parts);
  const {valley_layer: valleys, selected_layer: selecteds} = shown.columns;
  const valley = valleys[state.token];
  byId("plot-keys").replaceChildren(
    make("span", valley < L ? `▼ valley ${valley}` : "▽ no valley", "valley-sign"),
    make("span", `○ selected ${selecteds[state.token]}`, "selected-sign"),
    make("span", `┆ shown ${state.layer}`),
  );
}

function panel(curve, from, [left, right], height, title) {
  const inside = {left: left + 30, right: right - 10, top: 24, bottom: height - 22};
  const seen = curve.slice(from - 1).filter((value) => value !== null);
  const most = Math.max(...seen, 1e-3);
  const step = niceStep(most, 4);
  const top = step * Math.ceil(most / step - 1e-9);
  const n = L - from;
  const x = (layer) => inside.left + (n ? (layer - from) / n : 0.5) * (inside.right - inside.left);
  const y = (value) => inside.bottom - value / top * (inside.bottom - inside.top);
  const parts = [];
  const first = Math.max(from, L - data.window + 1);
  if (from === 1 && data.window > 1) {
    const begin = Math.max(inside.left, x(first - 0.5));
    parts.push(shape("rect", {class: "window", x: begin, y: inside.top, width: inside.right - begin + 4,
      height: inside.bottom - inside.top}));
  }
  parts.push(shape("text", {x: left + 2, y: 12}, title));
  for (let tick = 0; tick <= top * 1.001; tick += step) {
    parts.push(shape("path", {class: "axis", d: `M${inside.left} ${y(tick)}H${inside.right}`}));
    parts.push(shape("text", {x: inside.left - 5, y: y(tick) + 4, "text-anchor": "end"}, String(+tick.toPrecision(6))));
  }
  const every = Math.max(1, niceStep(n, Math.max(2, Math.floor((inside.right - inside.left) / 38))));
  const ticks = new Set([from, L]);
  for (let layer = Math.ceil(from / every) * every; layer < L; layer += every) {
    if (layer - from >= 0.6 * every && L - layer >= 0.6 * every) ticks.add(layer);
  }
  for (const layer of ticks) {
    parts.push(shape("text", {x: x(layer), y: height - 6, "text-anchor": "middle"}, String(layer)));
  }
  if (state.layer >= from) {
    parts.push(shape("path", {class: "shown", d: `M${x(state.layer)} ${inside.top}V${inside.bottom}`}));
  }
  let path = "";
  let drawing = false;
  for (let layer = from; layer <= L; layer += 1) {
    const value = curve[layer - 1];
    if (value !== null) {
      path += `${drawing ? "L" : "M"}${x(layer)} ${y(value)}`;
      if (n <= 16) parts.push(shape("circle", {class: "dot", cx: x(layer), cy: y(value), r: 2.25}));
    }
    drawing = value !== null;
  }
  parts.push(shape("path", {class: "curve", d: path}));
  const valley = shown.columns.valley_layer[state.token];
  const selected = shown.columns.selected_layer[state.token];
  if (valley < L && valley >= from && curve[valley - 1] !== null) {
    const [cx, cy] = [x(valley), y(curve[valley - 1]) - 5];
    parts.push(shape("path", {class: "valley", d: `M${cx} ${cy}l-5 -9h10z`}));
  }
  if (selected >= from && curve[selected - 1] !== null) {
    parts.push(shape("circle", {class: "selected", cx: x(selected), cy: y(curve[selected - 1]), r: 5}));
  }
  const target = shape("rect", {x: left, y: 0, width: right - left, height, fill: "transparent"});
  target.addEventListener("click", (event) => {
    const along = event.clientX - byId("plot").getBoundingClientRect().left;
    choose({layer: Math.round(from + (along - inside.left) / (inside.right - inside.left) * n)});
  });
  return [...parts, target];
}

// Choosing

const within = (value, low, high) => Math.min(high, Math.max(low, value));

async function choosePrompt(index, token = 0) {
  state.prompt = within(index, 0, data.prompts.length - 1);
  state.token = token;
  const wanted = state.prompt;
  const prompt = await load(wanted);
  if (state.prompt !== wanted) return;
  shown = prompt;
  byId("prompt").value = String(wanted);
  byId("prompt-previous").disabled = wanted === 0;
  byId("prompt-next").disabled = wanted === data.prompts.length - 1;
  const {prompt: given, reference} = shown.texts;
  byId("given-text").textContent = (given ?? "") + (reference === null ? "" : `\n\nReference answer: ${reference}`);
  const focused = byId("tokens").contains(document.activeElement); // the box that has the focus goes away
  drawTokens();
  recolour();
  markMatches();
  choose({token: state.token, focus: focused});
}

function choose({token = state.token, layer = state.layer, focus = false}) {
  if (!shown) return;
  boxes[state.token]?.setAttribute("aria-selected", "false");
  if (boxes[state.token]) boxes[state.token].tabIndex = -1;
  state.token = within(token, 0, boxes.length - 1);
  const moved = state.layer !== within(layer, 1, L);
  state.layer = within(layer, 1, L);
  const box = boxes[state.token];
  box.setAttribute("aria-selected", "true");
  box.tabIndex = 0;
  byId("layer").value = state.layer;
  byId("layer-number").textContent = `${state.layer} of ${L}${mixed() ? ` (${data.kinds[state.layer - 1]})` : ""}`;
  if (moved) recolour();
  drawDetail();
  keepInView(box);
  if (focus) box.focus({preventScroll: true});
}

const mixed = () => new Set(data.kinds).size > 1;

function keepInView(box) {
  const list = byId("tokens");
  if (box.offsetTop < list.scrollTop) list.scrollTop = box.offsetTop - 8;
  const below = box.offsetTop + box.offsetHeight - list.clientHeight;
  if (below + 8 > list.scrollTop) list.scrollTop = below + 8;
}

function chooseFramed(direction, focus) {
  const candidates = framed();
  const next = direction > 0
    ? candidates.find((token) => token > state.token) ?? candidates[0]
    : candidates.findLast((token) => token < state.token) ?? candidates.at(-1);
  if (next !== undefined) choose({token: next, focus});
}

// Searching

async function find(query) {
  search.query = query;
  const wanted = query.toLowerCase();
  const hits = [];
  if (wanted) {
    const prompts = await Promise.all(data.prompts.map((_, index) => load(index)));
    if (search.query !== query) return;
    prompts.forEach((prompt, index) => {
      hits.push(...hitsIn(prompt, wanted).map(([first, last]) => [index, first, last]));
    });
  }
  search.hits = hits;
  const here = hits.findIndex(([prompt, first]) =>
    prompt > state.prompt || (prompt === state.prompt && first >= state.token));
  search.at = here < 0 ? 0 : here;
  markMatches();
  await goToHit();
}

/** First and last token of every place where tokens, one behind the other, say what is wanted. */
function hitsIn(prompt, wanted) {
  const texts = Array.from(prompt.columns.next_token_id, (code) => code ? words[code].toLowerCase() : "");
  const ends = [];
  let length = 0;
  for (const text of texts) ends.push(length += text.length);
  const whole = texts.join("");
  const hits = [];
  let token = 0;
  for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
    while (ends[token] <= at) token += 1;
    let last = token;
    while (ends[last] < at + wanted.length) last += 1;
    hits.push([token, last]);
  }
  return hits;
}

async function goToHit() {
  const {hits, at} = search;
  byId("search-count").textContent = !search.query ? "" : hits.length ? `${at + 1} of ${hits.length}` : "nothing found";
  if (!hits.length) return;
  const [prompt, token] = hits[at];
  if (prompt !== state.prompt) await choosePrompt(prompt, token);
  else choose({token});
}

function nextHit(direction) {
  if (!search.hits.length) return;
  search.at = (search.at + direction + search.hits.length) % search.hits.length;
  goToHit();
}

// Listening

const KEYS = {
  ArrowLeft: () => choose({token: state.token - 1, focus: true}),
  ArrowRight: () => choose({token: state.token + 1, focus: true}),
  ArrowUp: () => choose({layer: state.layer + 1}),
  ArrowDown: () => choose({layer: state.layer - 1}),
  Home: () => choose({token: 0, focus: true}),
  End: () => choose({token: boxes.length - 1, focus: true}),
  s: () => chooseFramed(1, true),
  S: () => chooseFramed(-1, true),
  "[": () => choosePrompt(state.prompt - 1),
  "]": () => choosePrompt(state.prompt + 1),
};

function takesText(target) {
  return target instanceof Element && target.matches('input[type="search"], input[type="range"], select, textarea');
}

function listen() {
  byId("explorer").addEventListener("keydown", (event) => {
    const typed = event.ctrlKey || event.metaKey || event.altKey || takesText(event.target) || byId("help").open;
    if (typed || !(event.key in KEYS) || !shown) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || takesText(event.target) || byId("help").open) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("search").focus();
    }
    if (event.key === "?") byId("help").showModal();
  });
  byId("tokens").addEventListener("click", (event) => {
    const box = event.target instanceof Element && event.target.closest('[role="option"]');
    if (box) choose({token: Number(box.dataset.token), focus: true});
  });
  byId("layers").addEventListener("click", (event) => {
    const row = event.target instanceof Element && event.target.closest("tr[data-layer]");
    if (row) choose({layer: Number(row.dataset.layer)});
  });
  byId("layer").addEventListener("input", (event) => choose({layer: Number(event.target.value)}));
  byId("prompt").addEventListener("change", (event) => choosePrompt(Number(event.target.value)));
  byId("prompt-previous").addEventListener("click", () => choosePrompt(state.prompt - 1));
  byId("prompt-next").addEventListener("click", () => choosePrompt(state.prompt + 1));
  byId("replaced-previous").addEventListener("click", () => chooseFramed(-1, false));
  byId("replaced-next").addEventListener("click", () => chooseFramed(1, false));
  byId("measure").addEventListener("change", (event) => {
    state.measure = event.target.value;
    recolour();
  });
  byId("shared").addEventListener("change", (event) => {
    state.shared = event.target.checked;
    recolour();
  });
  byId("numbers").addEventListener("change", (event) => {
    byId("tokens").classList.toggle("with-numbers", event.target.checked);
  });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  // not a form of method "dialog": a sandboxed frame may not submit forms
  byId("help-close").addEventListener("click", () => byId("help").close());
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => find(event.target.value), 150);
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") boxes[state.token]?.focus({preventScroll: true});
  });
  byId("search-previous").addEventListener("click", () => nextHit(-1));
  byId("search-next").addEventListener("click", () => nextHit(1));
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (shown && Math.abs(entry.contentRect.width - width) > 1) drawPlot();
    width = entry.contentRect.width;
  }).observe(byId("plot"));
}

// Light and dark

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : prefersDark.matches;
}

function themed() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
  readRamps();
  if (shown) recolour();
}

// Starting

function fillControls() {
  byId("prompt").append(...data.prompts.map((prompt, index) => {
    const flaw = prompt.finish === "non_finite" ? ", not finite" : "";
    const option = make("option", `${visibleText(prompt.id)} (${prompt.n_tokens.toLocaleString("en")} tokens${flaw})`);
    option.value = String(index);
    return option;
  }));
  byId("measure").append(...Object.entries(COLOURINGS).map(([name, {label}]) => {
    const option = make("option", label);
    option.value = name;
    return option;
  }));
  byId("layer").max = L;
  const {entropy, norm_ratio: ratio, io_cosine: cosine} = data.measures;
  const off = [entropy, ratio, cosine].map(({error}) => error < 0.0005 ? "0.001" : error.toPrecision(1));
  const notes = [`Values are held in ${data.steps.toLocaleString("en")} steps a layer: 99 % of them are within `
    + `${off[0]} nats, ${off[1]} in norm ratio and ${off[2]} in I/O cosine.`];
  if (data.prompts_left_out) {
    notes.push(`The first ${data.prompts.length} prompts are on this page; ${data.prompts_left_out} more did not fit.`);
  }
  byId("explorer-note").textContent = notes.join(" ");
}

const visibleText = (text) => visible(text).map(([piece, isMark]) => isMark && piece === "·" ? " " : piece).join("");

async function start() {
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  prefersDark.addEventListener("change", themed);
  themed();
  if (typeof DecompressionStream === "undefined") {
    byId("explorer-note").textContent = "The explorer needs a newer browser, one that knows DecompressionStream.";
    return;
  }
  words = await inflateJson(data.words);
  fillControls();
  listen();
  await choosePrompt(0);
}

start();
})();
