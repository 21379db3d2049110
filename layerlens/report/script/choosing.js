// Choosing: a prompt of every run, a token and a layer of each, and how they are looked at

const VIEWS = ["text", "grid"];
const state = {prompt: 0, view: "text", measure: "entropy", shared: false, numbers: false, side: 0};
let pair = null; // which tokens of two runs belong together

const active = () => sides[state.side];
const within = (value, low, high) => Math.min(high, Math.max(low, value));
const mixed = ({packed}) => new Set(packed.kinds).size > 1;

async function choosePrompt(index, given = {}, side = active()) {
  state.prompt = within(index, 0, data.prompts.length - 1);
  const wanted = state.prompt;
  const focused = sides.some((one) => one.part("text-pane").contains(document.activeElement));
  const [prompts, aligned] = await Promise.all([
    Promise.all(sides.map((one) => one.load(wanted))),
    data.pairs ? unpackPair(data.pairs[wanted]) : null,
  ]);
  await Promise.all(prompts.map(unpackFirstWords));
  if (state.prompt !== wanted) return;
  pair = aligned;
  drawPrompt();
  sides.forEach((one, at) => {
    one.shown = prompts[at];
    one.token = 0;
    const {prompt, reference} = one.shown.texts;
    one.part("given-text").textContent = (prompt ?? "") + (reference === null ? "" : `\n\nReference answer: ${reference}`);
    drawTokens(one);
    one.part("given-text").scrollTop = 0;
    one.part("grid").scrollLeft = 0;
  });
  markMatches();
  recolour();
  choose({token: 0, ...given, focus: focused}, side);
}

/** Choose a token and a layer of one run, and with them what belongs to them in the other. */
function choose({token, layer, focus = false}, side = active()) {
  if (!side.shown) return;
  state.side = sides.indexOf(side);
  const before = sides.map((one) => one.layer);
  select(side, token ?? side.token, layer ?? side.layer);
  for (const other of sides) {
    if (other === side) continue;
    const counterparts = side === sides[0] ? pair.there : pair.back;
    const same = Math.max(1, Math.round(side.layer * other.L / side.L));
    select(other, counterparts[side.token], same);
  }
  const [first] = sides;
  byId("layer").value = first.layer;
  byId("layer-number").textContent =
    `${first.layer} of ${first.L}${mixed(first) ? ` (${first.packed.kinds[first.layer - 1]})` : ""}`;
  drawFramedCount(side);
  if (state.view === "text" && sides.some((one, at) => one.layer !== before[at])) recolour();
  sides.forEach(drawDetail);
  sides.forEach((one) => one.part("text-pane").classList.toggle("active", sides.length > 1 && one === side));
  if (focus) focusOn(side);
  remember();
}

/** Choose as a reader does who wants to see a token: its details open, and it stays in view. */
function inspect(given, side = active()) {
  openDetail(side);
  choose({focus: true, ...given}, side);
  keepChosenInView(side);
}

function drawFramedCount(side) {
  const n = framed(side).length;
  byId("framed-count").textContent = `${n ? counted(n) : "No"} framed token${n === 1 ? "" : "s"}`;
  for (const way of ["previous", "next"]) byId(`framed-${way}`).disabled = n === 0;
}

function select(side, token, layer) {
  const before = side.token;
  side.token = within(token, 0, side.n - 1);
  side.layer = within(layer, 1, side.L);
  markChosenBox(side, before);
  if (state.view === "grid") keepCellInView(side);
}

/** The token of a run at which its text is another than the other run's; null where none is. */
function partingOf(side) {
  return pair?.parting ? pair.parting[sides.indexOf(side)] : null;
}

function focusOn(side) {
  const target = state.view === "grid" ? side.part("grid") : side.boxes[side.token];
  target?.focus({preventScroll: true});
}

/** Scroll the page as little as shows the chosen token; details that cover the page's end count as its end. */
function keepChosenInView(side) {
  const chosen = state.view === "grid" ? byId(`chosen-cell${side.suffix}`) : side.boxes[side.token];
  chosen?.scrollIntoView({block: "nearest", inline: "nearest"});
}

function chooseView(view) {
  state.view = view;
  for (const name of VIEWS) byId(`view-${name}`).setAttribute("aria-pressed", String(name === view));
  byId("explorer").dataset.view = view;
  for (const side of sides) {
    side.part("tokens").hidden = view !== "text";
    side.part("grid").hidden = view !== "grid";
  }
  for (const option of byId("measure").options) {
    option.disabled = view === "grid" && Boolean(COLOURINGS[option.value].ofToken);
  }
  if (byId("measure").selectedOptions[0]?.disabled) chooseColour("entropy");
  byId("shared").disabled = view === "grid";
  if (!active().shown) return;
  recolour();
  choose({});
}

function chooseColour(measure) {
  state.measure = measure;
  byId("measure").value = measure;
  if (active().shown) recolour();
  remember();
}

function chooseFramed(direction, focus = true) {
  const side = active();
  const candidates = framed(side);
  const next = direction > 0
    ? candidates.find((token) => token > side.token) ?? candidates[0]
    : candidates.findLast((token) => token < side.token) ?? candidates.at(-1);
  if (next !== undefined) inspect({token: next, focus}, side);
}

function chooseParting() {
  const side = active();
  const token = partingOf(side);
  if (token !== null) inspect({token}, side);
}
