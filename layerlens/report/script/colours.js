// Colours

const COLOURINGS = {
  entropy: {label: "Entropy", unit: "nats", ramp: "entropy"},
  top_prob: {label: "Probability of top token", short: "Probability", ramp: "entropy", reversed: true},
  next_rank: {label: "Rank of next token", short: "Rank", unit: "vocabulary entries before it", ramp: "entropy", log: true},
  js_from_last: {label: "Divergence (JS)", short: "JS", unit: "nats", ramp: "stream"},
  kl_last_to_layer: {label: "Divergence (KL)", short: "KL", unit: "nats", ramp: "stream"},
  norm_ratio: {label: "Norm ratio", ramp: "stream"},
  io_cosine: {label: "I/O cosine", ramp: "stream", reversed: true},
  confidence: {label: "Confidence of parts", short: "Confidence", ramp: "stream"},
  vocab_confidence: {label: "Confidence over vocabulary", short: "Vocabulary", ramp: "stream"},
  valley_layer: {label: "Valley layer", unit: "layer", ramp: "layer", reversed: true, ofToken: true},
  selected_layer: {label: "Selected layer", unit: "layer", ramp: "layer", reversed: true, ofToken: true},
};
const shortly = (measure) => COLOURINGS[measure].short ?? COLOURINGS[measure].label;

/** What a measure is called within a sentence. */
function inText(measure) {
  const name = shortly(measure);
  return /^[A-Z]{2}|^I\/O/.test(name) ? name : name.toLowerCase();
}

/** The measures of each layer that a run has, in the order of the colourings. */
const measuresOf = (side) => Object.keys(COLOURINGS).filter((name) => name in side.packed.measures);

/** What every run on the page can be coloured by. */
const offered = Object.keys(COLOURINGS).filter((name) =>
  COLOURINGS[name].ofToken || sides.every((side) => name in side.packed.measures));

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

/** Whether colours mean the same in every layer: in the grid they always do. */
const isShared = () => state.shared || state.view === "grid";

/** Between which values colours run, in every run on the page. */
function scale() {
  const ends = sides.map(({packed, L, layer}) => {
    if (COLOURINGS[state.measure].ofToken) return [Math.min(packed.earliest, L - 1), L];
    const {pale, strong} = packed.measures[state.measure];
    return isShared() ? [Math.min(...pale), Math.max(...strong)] : [pale[layer - 1], strong[layer - 1]];
  });
  return [Math.min(...ends.map(([low]) => low)), Math.max(...ends.map(([, high]) => high))];
}

/** Where a value lies between the ends of the colours, 0 (pale) .. 1 (strong). */
function strength(value, [low, high]) {
  const {log, reversed} = COLOURINGS[state.measure];
  const bent = log ? Math.log1p : (x) => x;
  const along = high > low ? (bent(value) - bent(low)) / (bent(high) - bent(low)) : 0;
  return reversed ? 1 - along : along;
}

function paint(element, value, ends) {
  element.style.backgroundColor = value === null ? "" : ramp(COLOURINGS[state.measure].ramp, strength(value, ends));
  element.classList.toggle("missing", value === null);
}

function drawLegend() {
  const {label, unit, ramp: name, reversed, log} = COLOURINGS[state.measure];
  const ends = scale();
  const ordered = reversed ? [...ends].reverse() : ends;
  const layers = [...new Set(sides.map(({layer}) => layer))].join(" and ");
  const deepest = Math.max(...sides.map(({L}) => L));
  const after = COLOURINGS[state.measure].ofToken ? "" : isShared() ? ` after layers 1 to ${deepest}` : ` after layer ${layers}`;
  byId("scale-low").textContent = numeral(ordered[0], state.measure);
  byId("scale-high").textContent = numeral(ordered[1], state.measure);
  byId("scale-name").textContent = `${label}${after}${unit && unit !== "layer" ? `, ${unit}` : ""}${log ? ", log scale" : ""}`;
  const stops = ramps[name].map((_, i, all) => ramp(name, i / (all.length - 1)));
  byId("scale-bar").style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
}

function recolour() {
  drawLegend();
  for (const side of sides) {
    if (state.view === "grid") drawGrid(side);
    else recolourTokens(side);
  }
}
