// Data: what the page was given of one run, or of two beside each other

// Texts of a run are untrusted: they reach the page through text nodes and attributes' values only, never as markup.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("explorer-data").textContent);
const ARRAYS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array};
const UNCURVED = {
  square: (x) => x * x,
  exponential: (x) => Math.expm1(x) / 100,
  logarithm: Math.expm1,
  straight: (x) => x,
};
const PROB_STEPS = 255;

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function inflateJson(base64) {
  return JSON.parse(new TextDecoder().decode(await inflate(base64)));
}

/** One run: what was packed of it, what is chosen in it, and its parts of the page. */
class Side {
  constructor(packed, suffix) {
    this.packed = packed;
    this.suffix = suffix; // of its parts' ids
    this.L = packed.n_layers;
    this.words = [];
    this.loaded = new Map();
    this.shown = null; // the prompt on the page
    this.token = 0;
    this.layer = this.L;
    this.boxes = [];
    this.names = []; // what each box is called
    this.frames = []; // "replaced", "differs" or "", by token
    this.drawn = ""; // which cells of the grid are on the page
  }

  part(name) {
    return byId(name + this.suffix);
  }

  async readWords() {
    this.words = await inflateJson(this.packed.words);
    if (this.packed.first_words) this.words.push(...await inflateJson(this.packed.first_words.words));
  }

  load(index) {
    if (!this.loaded.has(index)) this.loaded.set(index, unpack(this.packed.prompts[index]));
    return this.loaded.get(index);
  }

  get n() {
    return this.shown.n_tokens;
  }

  /** A measure of a token after layer 1..L; null where it was not finite. */
  measured(measure, token, layer) {
    const step = this.shown.columns[measure][token * this.L + layer - 1];
    if (step === this.packed.steps) return null;
    const {curve, low, high} = this.packed.measures[measure];
    const along = step / (this.packed.steps - 1);
    return UNCURVED[curve](low[layer - 1] + (high[layer - 1] - low[layer - 1]) * along);
  }

  /** What colours a token: a measure after a layer, or one of its layers. */
  colouring(measure, token, layer) {
    return measure in this.packed.measures ? this.measured(measure, token, layer) : this.shown.columns[measure][token];
  }

  topCode(token, layer) {
    return this.shown.columns.top_token_id[token * this.L + layer - 1];
  }

  nextCode(token) {
    return this.shown.columns.next_token_id[token];
  }

  /** Whether a layer's top token is the one that followed. */
  knows(token, layer) {
    const code = this.nextCode(token);
    return code !== 0 && this.topCode(token, layer) === code;
  }

  differs(token, column) {
    return this.topCode(token, this.shown.columns[column][token]) !== this.topCode(token, this.L);
  }

  frameOf(token) {
    if (this.differs(token, "selected_layer")) return "replaced";
    return this.differs(token, "valley_layer") ? "differs" : "";
  }

  /** [code, probability or null] of the first tokens of a layer; none where the page has no room for them. */
  firstWords(token, layer) {
    if (!this.shown.firstWords) return [];
    const {codes, steps} = this.shown.firstWords;
    const {k} = this.packed.first_words;
    const from = (token * this.L + layer - 1) * k;
    return Array.from({length: k}, (_, at) => {
      const step = steps[from + at];
      return [codes[from + at], step === PROB_STEPS ? null : (step / (PROB_STEPS - 1)) ** 2];
    });
  }
}

const sides = [new Side(data, "")];
if (data.beside) sides.push(new Side(data.beside, "-beside"));

async function unpack(packed) {
  const names = Object.keys(packed.columns);
  const arrays = await Promise.all(names.map((name) => inflateArray(...packed.columns[name])));
  const columns = Object.fromEntries(names.map((name, at) => [name, arrays[at]]));
  return {...packed, columns, texts: await inflateJson(packed.texts)};
}

async function inflateArray(kind, base64) {
  return new ARRAYS[kind](await inflate(base64));
}

/** Inflate the first tokens of a prompt; only prompts that are looked at need them. */
async function unpackFirstWords(prompt) {
  if (!prompt.first_words || prompt.firstWords) return;
  const [kind, codes, steps] = prompt.first_words;
  prompt.firstWords = {codes: await inflateArray(kind, codes), steps: await inflateArray("uint8", steps)};
}

/** Which tokens of two runs belong together, and where their texts part. */
async function unpackPair(pair) {
  const [there, back] = await Promise.all([pair.there, pair.back].map((one) => inflateArray("int32", one)));
  return {there, back, parting: pair.parting};
}
