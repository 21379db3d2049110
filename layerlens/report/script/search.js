// Searching

const search = {query: "", hits: [], at: -1, side: sides[0]};

async function find(query) {
  search.query = query;
  search.side = active();
  const wanted = query.toLowerCase();
  const hits = [];
  if (wanted) {
    const prompts = await Promise.all(data.prompts.map((_, index) => search.side.load(index)));
    if (search.query !== query) return;
    prompts.forEach((prompt, index) => {
      hits.push(...hitsIn(prompt, wanted).map(([first, last]) => [index, first, last]));
    });
  }
  search.hits = hits;
  const here = hits.findIndex(([prompt, first]) =>
    prompt > state.prompt || (prompt === state.prompt && first >= search.side.token));
  search.at = here < 0 ? 0 : here;
  markMatches();
  if (state.view === "grid") sides.forEach(drawGrid);
  await goToHit();
}

/** First and last token of every place where tokens, one behind the other, say what is wanted. */
function hitsIn(prompt, wanted) {
  const {words} = search.side;
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

/** The tokens of a run's prompt that are part of what was searched for. */
function matchingTokens(side) {
  const tokens = new Set();
  for (const [prompt, first, last] of side === search.side ? search.hits : []) {
    if (prompt === state.prompt) for (let token = first; token <= last; token += 1) tokens.add(token);
  }
  return tokens;
}

async function goToHit() {
  const {hits, at, side} = search;
  byId("search-count").textContent = !search.query ? "" : hits.length ? `${counted(at + 1)} of ${counted(hits.length)}` : "nothing found";
  if (!hits.length) return;
  const [prompt, token] = hits[at];
  if (prompt !== state.prompt) await choosePrompt(prompt, {token}, side);
  else choose({token}, side);
}

function nextHit(direction) {
  if (!search.hits.length) return;
  search.at = (search.at + direction + search.hits.length) % search.hits.length;
  goToHit();
}
