// The plot: all layers, and the window of the valley enlarged

const SVG = "http://www.w3.org/2000/svg";

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

function drawPlot(side) {
  const {L, packed} = side;
  const svg = side.part("plot");
  const width = Math.max(260, svg.clientWidth);
  const height = svg.clientHeight || 190;
  const curve = Array.from({length: L}, (_, at) => side.measured("entropy", side.token, at + 1));
  const from = Math.max(1, L - packed.window + 1);
  const zooms = packed.window > 1 && from > 3;
  const split = zooms ? Math.round(0.58 * width) : width;
  const parts = panel(side, curve, 1, [0, split], height, "entropy, nats");
  if (zooms) parts.push(...panel(side, curve, from, [split, width], height, `last ${packed.window} layers`));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `Entropy after each layer, layer ${side.layer} marked; the table below has numbers`);
  svg.replaceChildren(...parts);
  const {valley_layer: valleys, selected_layer: selecteds} = side.shown.columns;
  const valley = valleys[side.token];
  side.part("plot-keys").replaceChildren(
    make("span", valley < L ? `▼ valley ${valley}` : "▽ no valley", "valley-sign"),
    make("span", `○ selected ${selecteds[side.token]}`, "selected-sign"),
    make("span", `┆ shown ${side.layer}`),
  );
}

function panel(side, curve, from, [left, right], height, title) {
  const {L, packed} = side;
  const inside = {left: left + 30, right: right - 10, top: 24, bottom: height - 22};
  const seen = curve.slice(from - 1).filter((value) => value !== null);
  const most = Math.max(...seen, 1e-3);
  const step = niceStep(most, 4);
  const top = step * Math.ceil(most / step - 1e-9);
  const n = L - from;
  const x = (layer) => inside.left + (n ? (layer - from) / n : 0.5) * (inside.right - inside.left);
  const y = (value) => inside.bottom - value / top * (inside.bottom - inside.top);
  const parts = [];
  const first = Math.max(from, L - packed.window + 1);
  if (from === 1 && packed.window > 1) {
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
  if (side.layer >= from) {
    parts.push(shape("path", {class: "shown", d: `M${x(side.layer)} ${inside.top}V${inside.bottom}`}));
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
  const valley = side.shown.columns.valley_layer[side.token];
  const selected = side.shown.columns.selected_layer[side.token];
  if (valley < L && valley >= from && curve[valley - 1] !== null) {
    const [cx, cy] = [x(valley), y(curve[valley - 1]) - 5];
    parts.push(shape("path", {class: "valley", d: `M${cx} ${cy}l-5 -9h10z`}));
  }
  if (selected >= from && curve[selected - 1] !== null) {
    parts.push(shape("circle", {class: "selected", cx: x(selected), cy: y(curve[selected - 1]), r: 5}));
  }
  const target = shape("rect", {x: left, y: 0, width: right - left, height, fill: "transparent"});
  target.addEventListener("click", (event) => {
    const along = event.clientX - side.part("plot").getBoundingClientRect().left;
    choose({layer: Math.round(from + (along - inside.left) / (inside.right - inside.left) * n)}, side);
  });
  return [...parts, target];
}
