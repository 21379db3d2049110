// The chosen token

function fact(name, ...content) {
  const made = make("div");
  const value = make("dd");
  value.append(...content);
  made.append(make("dt", name), value);
  return made;
}

/** Open the details where they cover the text, which they do in a narrow window; elsewhere they are always there. */
function openDetail(side) {
  for (const one of sides) one.part("detail").classList.toggle("open", one === side);
  document.documentElement.classList.add("detail-open");
}

function closeDetail() {
  for (const side of sides) side.part("detail").classList.remove("open");
  document.documentElement.classList.remove("detail-open");
  if (active().shown) focusOn(active());
}

function drawDetail(side) {
  const {columns} = side.shown;
  const {token, layer, L} = side;
  const at = (measure, of) => numeral(side.measured(measure, token, of), measure);
  const code = side.nextCode(token);
  const valley = columns.valley_layer[token];
  const selected = columns.selected_layer[token];
  const says = (of) => [`layer ${of}: `, word(side, side.topCode(token, of)), ` (${at("entropy", of)} nats)`];
  side.part("chosen").replaceChildren(word(side, code));
  const values = measuresOf(side).map((measure) =>
    `${inText(measure)} ${at(measure, layer)}${COLOURINGS[measure].unit === "nats" ? " nats" : ""}`);
  side.part("spoken").textContent = `Token ${counted(token + 1)} of ${counted(side.n)}: “${plain(side, code)}”. `
    + `After layer ${layer}: ${values.join(", ")}, top token “${plain(side, side.topCode(token, layer))}”.`;
  const facts = [
    fact("Read before it", word(side, columns.token_id[token]), ` at position ${counted(columns.position[token])}`),
    fact(
      `Next token, ${columns.is_generated[token] ? "emitted" : "given"}`,
      code ? word(side, code) : "nothing followed",
    ),
    fact("Last layer", ...says(L)),
    fact(valley === L ? "Valley" : "Valley layer", ...(valley === L ? ["none: the last layer"] : says(valley))),
    fact("Selected layer", ...(selected === L ? ["the last layer"] : says(selected))),
    fact("Last layer’s effect", effectOfLast(side)),
  ];
  const frame = side.frames[token];
  if (frame) {
    const chosen = frame === "replaced" ? selected : valley;
    const said = chosen === selected ? "Replaced" : "Would be replaced";
    facts.push(fact(said, word(side, side.topCode(token, L)), " → ", word(side, side.topCode(token, chosen))));
  }
  side.part("chosen-facts").replaceChildren(...facts);
  drawPlot(side);
  drawFirstWords(side);
  drawLayers(side);
}

function effectOfLast(side) {
  const {token, L} = side;
  if (L < 2) return "a single layer";
  const [before, last] = [L - 1, L].map((layer) => side.measured("entropy", token, layer));
  if (before === null || last === null) return "not finite";
  const change = `${last < before ? "−" : "+"}${numeral(Math.abs(last - before), "entropy")} nats`;
  return `${change}, ${side.shown.columns.perturbed[token] ? "perturbed" : "not perturbed"}`;
}

/** The first vocabulary entries of the chosen layer, with their probabilities, where the run has them. */
function drawFirstWords(side) {
  const part = side.part("first-words");
  part.hidden = !side.packed.first_words;
  if (part.hidden) return;
  const found = side.firstWords(side.token, side.layer);
  const title = make("h4", `Top tokens after layer ${side.layer}`);
  if (!found.length) {
    part.replaceChildren(title, make("p", "The top tokens of this prompt did not fit on the page.", "note"));
    return;
  }
  const list = make("ol");
  const next = side.nextCode(side.token);
  for (const [code, prob] of found) {
    const item = make("li");
    const bar = make("span", "", "bar");
    bar.style.width = `${100 * (prob ?? 0)}%`;
    const said = word(side, code);
    if (code === next) said.classList.add("same");
    item.append(bar, said, make("span", prob === null ? "–" : prob < 0.005 ? "<0.01" : prob.toFixed(2), "prob"));
    list.append(item);
  }
  part.replaceChildren(title, list);
}

function fillLayersHead(side) {
  const head = side.part("layers").tHead.rows[0];
  head.append(...measuresOf(side).map((measure) => {
    const name = make("th", shortly(measure));
    name.scope = "col";
    return name;
  }));
}

function drawLayers(side) {
  const {columns} = side.shown;
  const {token, L} = side;
  const rows = [];
  for (let layer = L; layer >= 1; layer -= 1) {
    const row = make("tr");
    const number = make("th", `${layer} `);
    number.scope = "row";
    if (layer === columns.valley_layer[token] && layer < L) number.append(sign("▼", "valley"));
    if (layer === columns.selected_layer[token]) number.append(sign("○", "selected"));
    const top = word(side, side.topCode(token, layer), "td");
    if (side.topCode(token, layer) === side.nextCode(token)) top.classList.add("same");
    row.append(number, top, ...measuresOf(side).map((measure) =>
      make("td", numeral(side.measured(measure, token, layer), measure))));
    row.dataset.layer = layer;
    if (layer === side.layer) row.setAttribute("aria-current", "true");
    rows.push(row);
  }
  const table = side.part("layers");
  table.tBodies[0].replaceChildren(...rows);
  const current = rows[L - side.layer];
  const view = side.part("layers-scroll");
  const head = table.tHead.offsetHeight;
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
